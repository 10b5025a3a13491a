from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from flatfix.tracking.provenance import Provenance, _cut


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Someone", "-c", "user.email=someone@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    (tmp_path / "train.py").write_text("epochs = 1\n")
    (tmp_path / "package").mkdir()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=first")
    return tmp_path


def test_a_clean_checkout_has_a_commit_a_branch_and_an_empty_diff(checkout: Path) -> None:
    found = Provenance.collect(checkout, [])
    assert found.commit == git(checkout, "rev-parse", "HEAD")
    assert (found.branch, found.is_dirty, found.diff, found.untracked) == ("main", False, "", ())


def test_the_diff_of_a_dirty_checkout_restores_it(checkout: Path) -> None:
    (checkout / "train.py").write_text("epochs = 2\n")
    (checkout / "new file.py").write_text("")
    (checkout / "package" / "staged.py").write_text("x = 1\n")
    git(checkout, "add", "package")
    found = Provenance.collect(checkout / "package", [])
    assert found.is_dirty
    assert found.untracked == ("new file.py",)
    assert found.diff is not None
    git(checkout, "reset", "--quiet", "--hard")
    subprocess.run(["git", "-C", str(checkout), "apply"], input=found.diff.encode(), check=True)
    assert (checkout / "train.py").read_text() == "epochs = 2\n"
    assert (checkout / "package" / "staged.py").read_text() == "x = 1\n"


def test_a_detached_head_has_no_branch(checkout: Path) -> None:
    git(checkout, "checkout", "--quiet", "--detach")
    found = Provenance.collect(checkout, [])
    assert found.branch is None
    assert found.commit is not None


def test_a_checkout_without_a_commit_is_dirty_and_has_no_diff(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    (tmp_path / "train.py").write_text("")
    found = Provenance.collect(tmp_path, [])
    assert (found.commit, found.branch, found.is_dirty, found.diff) == (None, "main", True, None)
    assert found.untracked == ("train.py",)


def test_outside_a_checkout_and_without_git_there_is_no_code_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        found = Provenance.collect(tmp_path, [])
        assert (found.commit, found.branch, found.is_dirty, found.diff, found.untracked) == (None, None, None, None, ())
        monkeypatch.setenv("PATH", str(tmp_path))


def test_a_huge_diff_is_cut_and_says_so() -> None:
    assert _cut("x" * 5_000_010).endswith("[cut: 10 more characters]\n")


def test_packages_and_machine_are_named(tmp_path: Path) -> None:
    found = Provenance.collect(tmp_path, ["numpy", "no-such-package"])
    assert found.packages == {"numpy": numpy.__version__, "no-such-package": None}
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.cpu
    assert found.hostname


def test_the_summary_is_json_without_the_diff(checkout: Path) -> None:
    summary = Provenance.collect(checkout, ["numpy"]).summary()
    assert "diff" not in summary
    assert json.loads(json.dumps(summary))["commit"] == git(checkout, "rev-parse", "HEAD")


def test_neither_torch_nor_mlflow_is_imported_to_collect_it(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from flatfix.tracking import Provenance; "
        "assert Provenance.collect(Path('.'), ['torch']).gpus == (); "
        "assert not {'torch', 'mlflow', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)}, check=True)

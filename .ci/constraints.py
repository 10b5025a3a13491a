"""Write constraints.txt: one exact version of everything that any extra of flatfix needs, chosen together.

Run by `make constraints`. The pins that stand are kept; `--upgrade` lets all of them move.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "constraints.txt"
HEADER = """\
# Exact versions of everything that any extra of flatfix needs, resolved together by pip on Linux and Python {python},
# the oldest that flatfix supports. Made from pyproject.toml by `make constraints`, which keeps the pins that stand;
# `make constraints UPGRADE=1` lets all of them move. A pin installs nothing: it holds the version of what is asked for.
"""


def resolve(python: str, requirement: str, pins: Path | None) -> dict[str, str]:
    """Return {name: version} of what pip would install for `requirement` into an empty environment."""
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    if pins is not None:
        command += ["--constraint", str(pins)]
    answer = subprocess.run([*command, requirement], check=True, stdout=subprocess.PIPE, cwd=ROOT)
    packages = [item["metadata"] for item in json.loads(answer.stdout)["install"]]
    return {re.sub(r"[-_.]+", "-", package["name"]).lower(): package["version"] for package in packages}


def main() -> None:
    """Resolve all extras in a scratch environment, then replace the file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=").split(",")[0]
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here != oldest:
        # A newer Python may choose versions that no longer support the oldest one.
        sys.exit(f"Resolve on Python {oldest}, not {here}: make constraints PYTHON=python{oldest}")
    requirement = f".[{','.join(project['optional-dependencies'])}]"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = f"{folder}/bin/python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
        keep = PINS if PINS.exists() and "--upgrade" not in sys.argv[1:] else None
        versions = resolve(python, requirement, keep)
    del versions[project["name"]]
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    draft = PINS.with_suffix(".txt.part")
    draft.write_text(HEADER.format(python=oldest) + "".join(lines))
    draft.replace(PINS)
    print(f"{PINS.name}: {len(lines)} pins")


if __name__ == "__main__":
    main()

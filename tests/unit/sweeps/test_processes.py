from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import hydra
import psutil
import pytest
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from flatfix.config import resolvers
from flatfix.machine import CORES, num_cores
from flatfix.sweeps import processes
from flatfix.sweeps.processes import GPUS, THREADS, ProcessLauncher
from flatfix.sweeps.remote import CONSOLE, Died
from tests.helpers.compose import CONF

PATIENCE_S = 60.0
Launch = Callable[..., ProcessLauncher]


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launch]:
    """Make launchers of a Hydra app whose jobs are the functions of `Tasks`; what they import is imported once."""
    monkeypatch.delenv(GPUS, raising=False)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text(
        f"do: value\nx: 1\nhydra: {{sweep: {{dir: {tmp_path}, subdir: '${{hydra.job.num}}'}}, output_subdir: null}}\n"
    )
    made = []
    with hydra.initialize_config_dir(str(tmp_path / "conf")):
        app = GlobalHydra.instance().hydra
        assert app is not None
        config = app.config_loader.load_configuration("app", overrides=[], run_mode=RunMode.MULTIRUN)
        HydraConfig.instance().set_config(config)

        def make(workers: int = 1) -> ProcessLauncher:
            made.append(ProcessLauncher(workers, preloaded=["flatfix.sweeps.processes"]))
            context = HydraContext(app.config_loader, Callbacks())
            made[-1].setup(hydra_context=context, task_function=_task(), config=config)
            return made[-1]

        yield make
        for each in made:
            each.close()


@pytest.mark.parametrize(
    ("words", "workers"),
    [(["sweep.workers=2"], 2), (["hydra/sweeper=optuna", "hydra.sweeper.n_jobs=3"], 3)],
)
def test_as_many_jobs_run_as_the_sweep_or_the_sweeper_itself_is_told(words: list[str], workers: int) -> None:
    resolvers.register()
    with hydra.initialize_config_dir(str(CONF)):
        assert hydra.compose("train", words, return_hydra_config=True).hydra.launcher.workers == workers


def _task() -> Callable[[DictConfig], Any]:
    """Return the function of the app; one inside another goes to other processes whole, without this module."""

    def task(cfg: DictConfig) -> Any:
        import os
        import signal
        import sys
        import threading
        import time
        from pathlib import Path

        from hydra.core.hydra_config import HydraConfig

        folder = Path(HydraConfig.get().runtime.output_dir)
        (folder / "pid").write_text(f"{os.getpid()}")
        match cfg.do:
            case "value":
                return cfg.x * 2
            case "facts":
                return os.getpid(), os.getsid(0), folder.name, {**os.environ}
            case "say":
                print("printed")
                os.system("echo from another program >&2")
            case "raise":
                raise ValueError("bad")
            case "interrupt":
                raise KeyboardInterrupt
            case "exit":
                sys.exit(4)
            case "end":
                os._exit(7)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "lock":
                return threading.Lock()
            case "wait":
                while not (folder / "go").exists():
                    time.sleep(0.02)
                return "went"
            case "stay":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                (folder / "deaf").touch()
                time.sleep(600)

    return task


def _error(returned: JobReturn) -> BaseException:
    assert returned.status is JobStatus.FAILED
    error = returned._return_value  # `return_value` raises it
    assert isinstance(error, BaseException)
    return error


def _until(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _pid(folder: Path) -> int:
    _until(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
    return int((folder / "pid").read_text())


def test_jobs_have_a_process_a_session_and_a_folder_of_their_own(
    launcher: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = launcher(workers=2).launch
    monkeypatch.setenv("SET_BY_NOW", "yes")
    facts = [each.return_value for each in launch([["do=facts"], ["do=facts"]], initial_job_idx=3)]
    assert [name for _, _, name, _ in facts] == ["3", "4"]
    assert len({os.getpid(), *(pid for pid, _, _, _ in facts)}) == 3
    assert all(pid == session for pid, session, _, _ in facts)
    assert all(environment["SET_BY_NOW"] == "yes" for *_, environment in facts)


def test_a_job_that_fails_says_why_and_harms_no_other(launcher: Launch) -> None:
    reasons: dict[str, Exception] = {
        "raise": ValueError("bad"),
        "interrupt": Died("interrupted"),
        "exit": Died("exit code 4"),
        "end": Died("exit code 7"),
        "kill": Died("killed by SIGKILL (often the machine's answer to too much memory)"),
        "lock": TypeError("cannot pickle '_thread.lock' object"),
    }
    launch = launcher(workers=2).launch
    first, *bad, last = launch([["x=3"], *([f"do={do}"] for do in reasons), ["x=4"]], initial_job_idx=0)
    assert [repr(_error(each)) for each in bad] == [repr(error) for error in reasons.values()]
    assert [(each.overrides, each.cfg) for each in bad] == [([f"do={do}"], {"do": do, "x": 1}) for do in reasons]
    assert (first.return_value, last.return_value) == (6, 8)


def test_threads_share_the_workers(launcher: Launch, tmp_path: Path) -> None:
    def running() -> set[str]:
        return {path.parent.name for path in tmp_path.glob("*/pid")}

    shared = launcher(workers=2)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(shared.launch, [["do=wait"]], number) for number in range(3)]
        _until(lambda: len(running()) == 2)
        first = running()
        for number in first:
            (tmp_path / number / "go").touch()
        _until(lambda: len(running()) == 3)
        assert sum(psutil.pid_exists(_pid(tmp_path / number)) for number in first) < 2  # the third had to wait
        (tmp_path / (running() - first).pop() / "go").touch()
        assert [job.result(PATIENCE_S)[0].return_value for job in jobs] == ["went"] * 3


def test_one_job_at_a_time_writes_to_the_terminal_and_several_to_their_files(
    launcher: Launch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    launcher(workers=2).launch([["do=say"]], initial_job_idx=0)
    assert (tmp_path / "0" / CONSOLE).read_text() == "printed\nfrom another program\n"
    launcher(workers=1).launch([["do=say"]], initial_job_idx=1)
    assert not (tmp_path / "1" / CONSOLE).exists()


def test_stopping_ends_what_runs_and_lets_nothing_begin(launcher: Launch, tmp_path: Path) -> None:
    one = launcher(workers=1)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(one.launch, [["do=wait"]], 0)
        pid = _pid(tmp_path / "0")
        waiting = pool.submit(one.launch, [["do=wait"]], 1)
        one.stop()
        one.stop()
        (died,), (never_began,) = running.result(PATIENCE_S), waiting.result(PATIENCE_S)
    assert repr(_error(died)) == repr(_error(never_began)) == repr(Died("interrupted"))
    assert not psutil.pid_exists(pid)
    assert not (tmp_path / "1").exists()


def test_a_job_that_does_not_heed_being_stopped_is_killed(
    launcher: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.1)
    one = launcher()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(one.launch, [["do=stay"]], 0)
        pid = _pid(tmp_path / "0")
        _until((tmp_path / "0" / "deaf").exists)
        one.stop()
        (died,) = running.result(PATIENCE_S)
    assert repr(_error(died)) == repr(Died("interrupted"))
    assert not psutil.pid_exists(pid)


def test_an_error_in_the_thread_that_launches_ends_the_job(launcher: Launch, tmp_path: Path) -> None:
    def interrupt() -> None:
        _pid(tmp_path / "0")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        launcher().launch([["do=wait"]], initial_job_idx=0)
    thread.join()
    assert not psutil.pid_exists(_pid(tmp_path / "0"))


def test_a_job_outlives_the_process_that_forks_them(launcher: Launch, tmp_path: Path) -> None:
    one = launcher(workers=1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(one.launch, [["do=wait"]], 0)
        _pid(tmp_path / "0")
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
        (tmp_path / "0" / "go").touch()
        assert running.result(PATIENCE_S)[0].return_value == "went"
    assert one.launch([["x=3"]], initial_job_idx=1)[0].return_value == 6


def test_several_jobs_divide_the_cores(launcher: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "num_cores", lambda: 7)
    monkeypatch.delenv(THREADS, raising=False)
    two, twenty = ProcessLauncher(2), ProcessLauncher(20)
    assert two._shares(0) == two._shares(1) == {CORES: "3", THREADS: "3"}
    assert twenty._shares(0) == {CORES: "1", THREADS: "1"}
    assert ProcessLauncher(1)._shares(0) == {}
    monkeypatch.setenv(THREADS, "2")
    environment = launcher(workers=2).launch([["do=facts"]], initial_job_idx=0)[0].return_value[3]
    assert (environment[CORES], environment[THREADS]) == ("3", "2")


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", ["0", "0", "0"]),
        ("2, GPU-5f", ["2", "GPU-5f", "2"]),
        ("1,-1,0", ["1", "1", "1"]),
        ("", [None, None, None]),
        ("-1", [None, None, None]),
    ],
)
def test_several_jobs_divide_the_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[str | None]
) -> None:
    monkeypatch.setenv(GPUS, visible)
    three = ProcessLauncher(3)
    assert [three._shares(place).get(GPUS) for place in range(3)] == expected
    assert GPUS not in ProcessLauncher(1)._shares(0)


def test_gpus_are_those_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    monkeypatch.delenv(GPUS, raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    two = ProcessLauncher(2)
    assert [two._shares(place)[GPUS] for place in range(2)] == ["0", "1"]


@pytest.mark.slow
def test_with_a_gpu_jobs_begin_anew_rather_than_forked(launcher: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_visible_gpus", lambda: ["6", "7"])
    returned = launcher(workers=2).launch([["do=facts"], ["do=facts"], ["do=kill"]], initial_job_idx=0)
    environments = [each.return_value[3] for each in returned[:2]]
    assert [each[GPUS] for each in environments] == ["6", "7"]
    assert "SIGKILL" in str(_error(returned[2]))


APP = """
import sys, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins

def job(cfg):
    import os
    import torch
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / "threads").write_text(f"{torch.get_num_threads()}")
    (folder / "pid").write_text(f"{os.getpid()}")
    time.sleep(600)

if __name__ == "__main__":
    from flatfix.sweeps.processes import ProcessLauncher
    Plugins.instance().register(ProcessLauncher)
    hydra.main(config_path="conf", config_name="app")(job)()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_jobs_end_with_the_sweeper(launcher: Launch, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "conf" / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "conf" / "hydra" / "launcher" / "processes.yaml").write_text(
        "_target_: flatfix.sweeps.processes.ProcessLauncher\nworkers: 2\npreloaded: [torch]\n"
    )
    (tmp_path / "app.py").write_text(APP)
    words = ["-m", "hydra/launcher=processes", "x=1,2"]
    environment = {name: value for name, value in os.environ.items() if name != THREADS}
    sweeper = subprocess.Popen(
        [sys.executable, "app.py", *words], cwd=tmp_path, env=environment, start_new_session=True
    )
    try:
        jobs = [psutil.Process(_pid(tmp_path / name)) for name in ("0", "1")]
        share = max(1, num_cores() // 2)
        assert [(tmp_path / name / "threads").read_text() for name in ("0", "1")] == [f"{share}"] * 2
        os.killpg(sweeper.pid, number)  # as Ctrl-C in its terminal reaches it, and all that is still in its session
        assert sweeper.wait(PATIENCE_S) == -number
        gone, alive = psutil.wait_procs(jobs, timeout=PATIENCE_S)
        assert not alive
    finally:
        sweeper.kill()
        sweeper.wait()

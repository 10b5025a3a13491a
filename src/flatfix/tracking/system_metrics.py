"""What the machine does while a run lasts, logged with the names and the sampling that MLflow uses."""

from __future__ import annotations

import threading
from collections.abc import Callable


class SystemMetrics:
    """Log CPU, memory, disk, network and GPU use from a daemon thread, through the function given.

    MLflow's own monitor asks its server at every sample, ends at the first answer that fails, and waits without a bound
    when it is told to stop; only its measuring is used here. `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`,
    `…_SAMPLES_BEFORE_LOGGING` and `…_NODE_ID` mean what MLflow says they do.

    Args:
        log: Takes metrics and their step.
        run_id: The run that MLflow's monitor is made for.
        uri: Where that run is kept.
        first_step: Step of the first sample.
    """

    def __init__(
        self, log: Callable[[dict[str, float], int], None], run_id: str, uri: str, *, first_step: int = 0
    ) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._log = log
        self._first_step = first_step
        self._monitor = SystemMetricsMonitor(run_id, tracking_uri=uri)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Log what was measured last, so that a short run has a sample too, and end the thread."""
        self._stop.set()
        self._thread.join(timeout=2)

    def _work(self) -> None:
        monitor = self._monitor
        prefix = f"system/{monitor.node_id}/" if monitor.node_id else "system/"
        num_samples, step = 0, self._first_step
        is_last = False
        while not is_last:
            is_last = self._stop.wait(monitor.sampling_interval)
            monitor.collect_metrics()
            num_samples += 1
            if is_last or num_samples % monitor.samples_before_logging == 0:
                self._log({prefix + key: value for key, value in monitor.aggregate_metrics().items()}, step)
                step += 1
                for part in monitor.monitors:
                    part.clear_metrics()

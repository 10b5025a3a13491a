"""What runs an exported model on this machine's processor."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from flatfix.console import complain
from flatfix.errors import UserError
from flatfix.machine import num_cores

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
OUTPUTS = ("logits", "features")


class UnloadableModelError(UserError):
    """Report a model that a runtime cannot load on this machine."""


class Pair(NamedTuple):
    """Name a runtime and the number format that it computes in."""

    runtime: str
    precision: str

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision}"


ONNXRUNTIME = Pair("onnxruntime", "fp32")
OPENVINO = Pair("openvino", "fp32")
OPENVINO_BF16 = Pair("openvino", "bf16")
PAIRS = (ONNXRUNTIME, OPENVINO, OPENVINO_BF16)  # the first is everybody's reference


class Runtime(Protocol):
    """Run a model, from any number of threads at once."""

    @property
    def name(self) -> str:
        """Return `onnxruntime` or `openvino`."""

    @property
    def precision(self) -> str:
        """Return `fp32` or `bf16`."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Return logits `[N, C] float32` and features `[N, D] float32` of pictures `[N, H, W, 3] uint8`, N above 0."""


def available() -> list[Pair]:
    """Return the pairs of `PAIRS` that are installed here and that the processor has instructions for."""
    if importlib.util.find_spec("openvino") is None:
        return [ONNXRUNTIME]
    has_bf16 = "BF16" in _openvino().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [ONNXRUNTIME, OPENVINO, *([OPENVINO_BF16] if has_bf16 else [])]


def check(name: str, precision: str) -> Pair:
    """Return the pair when this machine runs it.

    Raises:
        UserError: naming the options, the reason and what this machine runs.
    """
    pair, here = Pair(name, precision), available()
    if pair in here:
        return pair
    if pair not in PAIRS:
        reason = "there is no such pair"
    elif OPENVINO not in here:
        reason = "OpenVINO is not installed. Install it with: pip install 'flatfix[openvino]'"
    else:
        reason = "the processor does not compute in it"
    raise UserError(f"runtime={name} precision={precision}: {reason}. This machine runs {', '.join(map(str, here))}")


def open_runtime(model: Path, name: str, precision: str, num_threads: int | None = None) -> Runtime:
    """Load a model.

    Args:
        model: `model.onnx` of a package.
        name: `onnxruntime` or `openvino`.
        precision: `fp32` or `bf16`.
        num_threads: that compute one batch; all cores that this process may use by default.

    Raises:
        UserError: when this machine does not run the pair.
        UnloadableModelError: when it does, but not with this model.
    """
    pair, threads = check(name, precision), num_threads or num_cores()
    try:
        return OnnxRuntime(model, threads) if pair == ONNXRUNTIME else OpenVino(model, precision, threads)
    except Exception as error:  # the errors of ONNX Runtime have no class in common
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UnloadableModelError(
            f"{pair} does not run {model} here: {reason}. Install the version of {name} that the model's card names"
        ) from error


def open_each(model: Path, pairs: Sequence[Pair], num_threads: int | None = None) -> dict[Pair, Runtime]:
    """Load a model once for every pair that runs it here, of pairs that are available.

    OpenVINO can promise a precision of a processor, and then have no code for an operator of the model.
    """
    opened: dict[Pair, Runtime] = {}
    for pair in pairs:
        try:
            opened[pair] = open_runtime(model, *pair, num_threads)
        except UnloadableModelError as error:
            if pair == ONNXRUNTIME:
                raise
            complain(str(error))
    return opened


def version_of(name: str) -> str:
    """Return the version of a runtime that is installed."""
    return str(importlib.import_module(name).__version__)


class OnnxRuntime:
    """Run a model with ONNX Runtime, in fp32."""

    name = "onnxruntime"
    precision = "fp32"

    def __init__(self, model: Path, num_threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1  # operators run one after another: one pool of threads is enough
        # A pool that spins while it waits takes the cores from decoding, and from the other models of a process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Return logits and features, see `Runtime`."""
        logits, features = self._session.run(OUTPUTS, {"images": images})
        return logits, features


class OpenVino:
    """Run a model with OpenVINO.

    It is compiled twice: for one picture alone, which is up to 15 % faster then, and for any number of them.
    """

    name = "openvino"

    def __init__(self, model: Path, precision: str, num_threads: int) -> None:
        self.precision = precision
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": num_threads,
            # Said, because OpenVINO computes in bf16 wherever it is fast unless told otherwise.
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            # A pinned thread cannot leave a core that another process keeps busy.
            "ENABLE_CPU_PINNING": False,
        }
        core = _openvino()
        network = core.read_model(model)
        self._of_any = _Requests(core.compile_model(network, "CPU", options))
        network.reshape([1, *list(network.input("images").partial_shape)[1:]])
        self._of_one = _Requests(core.compile_model(network, "CPU", options))

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Return logits and features, see `Runtime`."""
        with (self._of_one if len(images) == 1 else self._of_any).one() as request:
            said = request.infer({"images": images})
            logits, features = (said[name] for name in OUTPUTS)
            return logits, features


class _Requests:
    """Keep OpenVINO's inference requests, each of which serves one thread at a time, for the next that asks."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self._idle.put(compiled.create_infer_request())

    @contextmanager
    def one(self) -> Iterator[Any]:
        """Lend a request; there are never more than threads that asked at once."""
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        try:
            yield request
        finally:
            self._idle.put(request)


@cache
def _openvino() -> Any:
    import openvino  # an extra

    return openvino.Core()

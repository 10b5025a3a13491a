from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from flatfix.errors import UserError
from flatfix.inference.package import MODEL
from flatfix.inference.runtime import (
    ONNXRUNTIME,
    OPENVINO,
    OPENVINO_BF16,
    PAIRS,
    UnloadableModelError,
    available,
    open_runtime,
)
from tests.helpers.packages import pictures, small_classifier

HERE = available()
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}


@pytest.fixture(scope="module", params=HERE, ids=str)
def runtime(request, package):
    return open_runtime(package.path(MODEL), *request.param)


def test_the_reference_of_all_runs_everywhere():
    assert HERE[0] == PAIRS[0] == ONNXRUNTIME


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_a_runtime_gives_the_logits_and_features_of_torch(runtime, count):
    images = pictures(count)
    logits, features = runtime.run(images)
    with torch.inference_mode():
        expected = small_classifier()(torch.from_numpy(images))

    assert logits.dtype == features.dtype == np.float32
    np.testing.assert_allclose(logits, expected.logits, atol=TOLERANCE[runtime.precision])
    np.testing.assert_allclose(features, expected.features, atol=TOLERANCE[runtime.precision])


def test_a_runtime_knows_its_name_and_precision(runtime):
    assert (runtime.name, runtime.precision) in HERE


def test_reduced_precision_is_really_reduced(package):
    if OPENVINO_BF16 not in HERE:
        pytest.skip("the processor has no bf16")
    images = pictures(8)
    precise, reduced = (open_runtime(package.path(MODEL), *pair).run(images)[1] for pair in (OPENVINO, OPENVINO_BF16))

    assert np.abs(precise - reduced).max() > 1e-5


def test_a_precision_that_the_processor_only_promises_is_left_out(package):
    if OPENVINO_BF16 not in HERE:
        pytest.skip("the processor has no bf16")
    code = (
        "import sys; from pathlib import Path; from flatfix.inference.runtime import available, open_each\n"
        "print([str(pair) for pair in open_each(Path(sys.argv[1]), available())])"
    )
    # OpenVINO's operators see a processor without bf16 then, its list of capabilities does not.
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", code, str(package.path(MODEL))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "['onnxruntime fp32', 'openvino fp32']"
    assert "openvino bf16 does not run" in done.stderr


@pytest.mark.parametrize("pair", HERE)
def test_a_model_that_a_runtime_cannot_load_is_refused(tmp_path, pair):
    (tmp_path / "model.onnx").write_bytes(b"of another time")
    with pytest.raises(UnloadableModelError, match=f"{pair} does not run .*model.onnx here: "):
        open_runtime(tmp_path / "model.onnx", *pair)


def test_what_was_answered_stays_when_the_next_is_asked(runtime):
    first, _ = runtime.run(pictures(3, seed=1))
    before = first.copy()
    second, _ = runtime.run(pictures(3, seed=2))

    np.testing.assert_array_equal(first, before)
    assert not np.array_equal(first, second)


def test_threads_get_their_own_answers(runtime):
    batches = [pictures(1 + seed % 4, seed=seed) for seed in range(40)]
    expected = [runtime.run(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for (logits, features), (logits_alone, features_alone) in zip(
            pool.map(runtime.run, batches * 5), expected * 5, strict=True
        ):
            np.testing.assert_array_equal(logits, logits_alone)
            np.testing.assert_array_equal(features, features_alone)


def test_pictures_that_may_not_be_written_to_are_answered(runtime):
    images = pictures(2)
    expected, _ = runtime.run(images)
    images.setflags(write=False)

    np.testing.assert_array_equal(runtime.run(images)[0], expected)


@pytest.mark.parametrize(("name", "precision"), [("onnxruntime", "bf16"), ("tensorrt", "fp32"), ("openvino", "int8")])
def test_a_pair_that_there_is_not_is_refused_with_those_that_there_are(package, name, precision):
    with pytest.raises(UserError, match=f"runtime={name} precision={precision}: .*This machine runs onnxruntime fp32"):
        open_runtime(package.path(MODEL), name, precision)


def test_without_openvino_the_error_says_how_to_get_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed

    assert available() == [ONNXRUNTIME]
    with pytest.raises(UserError, match=r"runtime=openvino .*pip install 'flatfix\[openvino\]'.*onnxruntime fp32$"):
        open_runtime(package.path(MODEL), "openvino", "fp32")


def test_openvino_and_torch_are_not_imported_before_they_are_needed():
    code = "import sys, flatfix.inference.predictor; print(sys.modules.keys() & {'openvino', 'torch', 'mlflow'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"

from __future__ import annotations

import json

import pytest

from flatfix.errors import UserError
from flatfix.inference import selection
from flatfix.inference.runtime import ONNXRUNTIME, OPENVINO, available
from flatfix.inference.selection import select
from tests.helpers.packages import permits, with_card

FP32 = [pair for pair in available() if pair.precision == "fp32"]
pytestmark = pytest.mark.skipif(OPENVINO not in FP32, reason="needs OpenVINO: without it there is nothing to choose")


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    monkeypatch.setattr(selection, "CALIBRATION_S", 0.1)


@pytest.fixture
def both(package, tmp_path):
    return with_card(package, tmp_path / "both", permits=permits(ONNXRUNTIME, OPENVINO))


@pytest.fixture
def only_onnxruntime(package, tmp_path):
    return with_card(package, tmp_path / "one", permits=permits(ONNXRUNTIME))


def kept(cache):
    (file,) = (cache / "runtimes").iterdir()
    return file


def test_auto_takes_the_fastest_and_tells_the_times(both):
    runtime, reason = select(both)

    assert (runtime.name, runtime.precision) in FP32
    assert reason.startswith(f"the fastest here: {runtime.name} fp32 ")
    assert reason.count("ms a picture") == 2


def test_a_choice_is_kept_and_not_measured_again(both, tmp_path, monkeypatch):
    runtime, reason = select(both, cache_dir=tmp_path)
    monkeypatch.delattr(selection, "measure")
    again, why = select(both, cache_dir=tmp_path)

    assert again.name == runtime.name
    assert why == f"{reason}, measured before"
    values = json.loads(kept(tmp_path).read_text())
    assert min(values["milliseconds"], key=values["milliseconds"].get) == f"{runtime.name} fp32"
    assert values["package"] == both.digest


def test_a_choice_is_kept_where_a_runtime_does_not_load_the_model(both, tmp_path):
    select(both, cache_dir=tmp_path)
    values = json.loads(kept(tmp_path).read_text())
    kept(tmp_path).write_text(json.dumps(values | {"milliseconds": {"onnxruntime fp32": 1.0}}))

    assert (
        select(both, cache_dir=tmp_path)[1] == "the fastest here: onnxruntime fp32 1.00 ms a picture, measured before"
    )


def test_the_choice_that_is_kept_decides(both, tmp_path):
    select(both, cache_dir=tmp_path)
    values = json.loads(kept(tmp_path).read_text())
    for fastest in ("onnxruntime", "openvino"):
        other = {"onnxruntime": "openvino", "openvino": "onnxruntime"}[fastest]
        milliseconds = {f"{fastest} fp32": 1.0, f"{other} fp32": 2.0}
        kept(tmp_path).write_text(json.dumps(values | {"milliseconds": milliseconds}))
        runtime, reason = select(both, cache_dir=tmp_path)

        assert runtime.name == fastest
        assert reason == (
            f"the fastest here: {fastest} fp32 1.00 ms a picture, {other} fp32 2.00 ms a picture, measured before"
        )


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 99}', '{"schema_version": 1}'])
def test_a_spoilt_file_is_measured_and_written_again(both, tmp_path, content):
    _, reason = select(both, cache_dir=tmp_path)
    kept(tmp_path).write_text(content)
    _, again = select(both, cache_dir=tmp_path)

    assert not again.endswith("measured before")
    assert json.loads(kept(tmp_path).read_text())["schema_version"] == 1


def test_another_package_and_another_number_of_threads_are_measured_anew(package, both, tmp_path):
    for some, threads in ((package, None), (both, 1), (both, 2)):
        select(some, num_threads=threads, cache_dir=tmp_path)

    assert len(list((tmp_path / "runtimes").iterdir())) == 3


def test_nothing_is_measured_where_there_is_nothing_to_choose(only_onnxruntime, both, tmp_path):
    assert select(only_onnxruntime, cache_dir=tmp_path)[1] == "the only one that is permitted and installed"
    runtime, reason = select(both, "openvino", "fp32", cache_dir=tmp_path)

    assert (runtime.name, reason) == ("openvino", "as asked for")
    assert not (tmp_path / "runtimes").exists()


@pytest.mark.parametrize(("runtime", "precision"), [("openvino", "auto"), ("auto", "bf16"), ("openvino", "fp32")])
def test_what_the_card_does_not_permit_is_refused_with_what_it_does(only_onnxruntime, runtime, precision):
    message = f"runtime={runtime} precision={precision}: the card .* Permitted: onnxruntime fp32$"
    with pytest.raises(UserError, match=message):
        select(only_onnxruntime, runtime, precision)


def test_what_no_runtime_does_is_refused(both):
    with pytest.raises(UserError, match="runtime=onnxruntime precision=bf16: there is no such pair"):
        select(both, "onnxruntime", "bf16")
    with pytest.raises(UserError, match="runtime=openvin: not a valid choice.*Did you mean 'openvino'"):
        select(both, "openvin")
    with pytest.raises(UserError, match="precision=int8: not a valid choice"):
        select(both, "auto", "int8")

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from flatfix.sweeps.composition import corners


def test_corners_have_every_choice_and_both_ends_of_every_interval_and_are_few() -> None:
    space = {
        "model": CategoricalDistribution(["cnn", "resnet18", "resnet50"]),
        "optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True),
        "dataset.batch_size": IntDistribution(16, 64),
    }
    points = list(corners(space))
    assert len(points) == 1 + 2 + 1 + 1
    for name, values in {"model": {"cnn", "resnet18", "resnet50"}, "optimizer.lr": {1e-4, 1e-1}}.items():
        assert {point[name] for point in points} == values
    assert {point["dataset.batch_size"] for point in points} == {16, 64}
    assert all(point.keys() == space.keys() for point in points)


def test_an_empty_space_has_one_point() -> None:
    assert list(corners({})) == [{}]

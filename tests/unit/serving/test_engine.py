from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import numpy as np
import pytest

from flatfix.inference.decision import Decision
from flatfix.inference.predictor import Predictions
from flatfix.serving.engine import Engine
from flatfix.serving.metrics import Metrics
from flatfix.serving.problems import Problem

BOUND_S = 10


class Brightness:
    """A model whose first logit is the first pixel of a picture, and that computes only while its gate is open.

    It refuses a batch with a picture of 255, and remembers the first pixels of every batch.
    """

    def __init__(self, is_open: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.has_begun = threading.Event()
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def predict(self, images: np.ndarray) -> Predictions:
        first = images[:, 0, 0, 0]
        self.batches.append(first.tolist())
        self.has_begun.set()
        assert self.gate.wait(BOUND_S)
        if 255 in first:
            raise RuntimeError(f"cannot compute {len(images)}")
        logits = np.stack([first, np.zeros(len(images))], axis=1).astype(np.float32)
        return Predictions.of(logits, logits, Decision())


def pictures(*shades: int) -> np.ndarray:
    return np.repeat(np.array(shades, np.uint8), 12).reshape(-1, 2, 2, 3)


def running(scenario, batch_size=4, wait_s=0.0):
    """Run a scenario with an engine, and return the metrics as text."""
    metrics = Metrics()

    async def main():
        engine = Engine(batch_size=batch_size, wait_s=wait_s, metrics=metrics)
        engine.start(asyncio.get_running_loop())
        try:
            await asyncio.wait_for(scenario(engine), BOUND_S)
        finally:
            await asyncio.to_thread(engine.stop, BOUND_S)
        assert not engine.is_alive

    asyncio.run(main())
    return metrics.render()[0].decode()


async def asked(engine, model, *shades, **how):
    """Ask, and return the task once the pictures wait."""
    task = asyncio.create_task(engine.answer(model, pictures(*shades), **how))
    await asyncio.sleep(0)
    return task


async def busy(engine):
    """Return a model that computes a picture of shade 0 until its gate opens."""
    model = Brightness(is_open=False)
    task = await asked(engine, model, 0)
    assert await asyncio.to_thread(model.has_begun.wait, BOUND_S)
    return model, task


def shades(said):
    return said.logits[:, 0].tolist()


def test_each_request_gets_the_answer_to_its_own_pictures():
    async def scenario(engine):
        model = Brightness()
        said = await asyncio.gather(*(engine.answer(model, pictures(n, n + 1)) for n in range(200)))

        assert [shades(each) for each in said] == [[n, n + 1] for n in range(200)]

    running(scenario)


def test_what_waits_becomes_one_batch_and_is_counted():
    async def scenario(engine):
        model, first = await busy(engine)
        rest = [await asked(engine, model, n) for n in (1, 2, 3, 4, 5)]
        assert engine.num_waiting == 5
        model.gate.set()

        assert [shades(said) for said in await asyncio.gather(first, *rest)] == [[n] for n in range(6)]
        assert model.batches == [[0], [1, 2, 3, 4], [5]]
        assert engine.num_waiting == 0

    text = running(scenario)
    assert "\nqueue_depth 0.0\n" in text
    assert "\nbatch_size_sum 6.0\n" in text and "\nbatch_size_count 3.0\n" in text
    assert "\nqueue_wait_seconds_count 6.0\n" in text
    assert "\ninference_seconds_count 3.0\n" in text


def test_a_batch_is_of_one_predictor_and_the_longest_waiting_is_always_in_the_next():
    async def scenario(engine):
        order = []

        class Model(Brightness):
            def predict(self, images):
                order.append((self.name, images[:, 0, 0, 0].tolist()))
                return super().predict(images)

        old, new = Model(), Model()
        old.name, new.name = "old", "new"
        blocking, first = await busy(engine)
        tasks = [await asked(engine, old if n % 3 else new, n) for n in range(12)]
        blocking.gate.set()

        assert [shades(said) for said in await asyncio.gather(*tasks)] == [[n] for n in range(12)]
        assert order == [("new", [0, 3, 6, 9]), ("old", [1, 2, 4, 5]), ("old", [7, 8, 10, 11])]

    running(scenario)


def test_pictures_of_one_request_that_exceed_a_batch_go_in_parts_behind_those_who_came_meanwhile():
    async def scenario(engine):
        model, _ = await busy(engine)
        many = await asked(engine, model, *range(1, 10))
        one = await asked(engine, model, 99)
        model.gate.set()

        assert shades(await many) == list(range(1, 10))
        assert shades(await one) == [99]
        order = [shade for batch in model.batches for shade in batch]
        assert order == [0, 1, 2, 3, 4, 99, 5, 6, 7, 8, 9]

    running(scenario)


def test_a_request_that_does_not_fit_is_passed_over_once_and_then_served_first():
    async def scenario(engine):
        model, _ = await busy(engine)
        tasks = [await asked(engine, model, *each) for each in [(1, 2), (3, 4, 5), (6,), (7,), (8,)]]
        model.gate.set()
        await asyncio.gather(*tasks)

        assert model.batches == [[0], [1, 2, 6, 7], [3, 4, 5, 8]]

    running(scenario)


def test_what_is_not_urgent_is_computed_when_nothing_urgent_waits_one_request_at_a_time():
    async def scenario(engine):
        model, _ = await busy(engine)
        patient = [await asked(engine, model, n, is_urgent=False) for n in (1, 2)]
        urgent = [await asked(engine, model, n) for n in (3, 4, 5, 6, 7)]
        model.gate.set()
        await asyncio.gather(*patient, *urgent)

        assert model.batches == [[0], [3, 4, 5, 6], [7], [1], [2]]

    assert "\nqueue_wait_seconds_count 6.0\n" in running(scenario)  # what waits by design is not measured


def test_a_request_whose_client_went_away_is_not_computed():
    async def scenario(engine):
        model, first = await busy(engine)
        gone, stays = await asked(engine, model, 1), await asked(engine, model, 2)
        first.cancel()
        gone.cancel()
        await asyncio.wait([gone, first])
        model.gate.set()

        assert shades(await stays) == [2]
        assert model.batches == [[0], [2]]

    assert "\nqueue_depth 0.0\n" in running(scenario)


def test_what_a_runtime_raises_reaches_the_request_at_fault_and_no_other():
    async def scenario(engine):
        model, _ = await busy(engine)
        good, bad = await asked(engine, model, 1), await asked(engine, model, 255)
        large = asyncio.create_task(engine.answer(model, np.full((1, 5, 5, 3), 2, np.uint8)))
        await asyncio.sleep(0)
        model.gate.set()

        with pytest.raises(RuntimeError, match="cannot compute 1"):
            await bad
        assert (shades(await good), shades(await large)) == ([1], [2])
        assert engine.is_alive
        assert shades(await engine.answer(model, pictures(3))) == [3]

    running(scenario)


def test_failures_of_a_model_are_counted_until_it_answers_and_not_for_another():
    async def scenario(engine):
        model, other = Brightness(), Brightness()
        for number in (1, 2):
            with pytest.raises(RuntimeError):
                await engine.answer(model, pictures(255))
            assert engine.num_failures(model) == number
        await engine.answer(other, pictures(1))
        assert (engine.num_failures(model), engine.num_failures(other)) == (2, 0)
        await engine.answer(model, pictures(1))
        assert engine.num_failures(model) == 0

    running(scenario)


def test_a_batch_waits_for_pictures_that_are_being_decoded():
    async def scenario(engine):
        model = Brightness()
        with engine.coming():
            tasks = [await asked(engine, model, n) for n in (1, 2, 3, 4)]
            await asyncio.gather(*tasks)  # a full batch waits no longer

        assert model.batches == [[1, 2, 3, 4]]

    running(scenario, wait_s=BOUND_S)


def test_pictures_that_never_come_are_waited_for_no_longer_than_was_said():
    async def scenario(engine):
        with engine.coming():  # the scenario would run out of time
            await engine.answer(Brightness(), pictures(1))

    running(scenario, wait_s=0.05)


def test_a_picture_alone_does_not_wait():
    async def scenario(engine):
        await engine.answer(Brightness(), pictures(1))

    running(scenario, wait_s=2 * BOUND_S)  # the scenario would run out of time


def test_stopping_answers_who_waits_and_refuses_who_comes():
    async def scenario(engine):
        model, first = await busy(engine)
        waiting = [await asked(engine, model, n) for n in range(1, 7)]
        late = await asked(engine, model, 7, is_urgent=False)
        stopping = asyncio.create_task(asyncio.to_thread(engine.stop, BOUND_S))
        while engine.is_alive:
            await asyncio.sleep(0.001)
        with pytest.raises(Problem) as caught:
            await engine.answer(model, pictures(8))
        model.gate.set()
        await stopping

        assert (caught.value.status, caught.value.reason) == (503, "stopping")
        assert [shades(said) for said in await asyncio.gather(first, *waiting, late)] == [[n] for n in range(8)]

    running(scenario)


def test_stopping_twice_or_before_the_start_does_nothing():
    engine = Engine(batch_size=1, wait_s=0, metrics=Metrics())

    engine.stop()
    engine.stop()

    assert not engine.is_alive


def test_a_model_that_answered_and_was_let_go_leaves_memory():
    async def scenario(engine):
        model = Brightness()
        await engine.answer(model, pictures(1))
        gone = weakref.ref(model)
        del model
        while gone():  # the thread may still be counting
            await asyncio.sleep(0.001)

    gc.disable()  # it leaves at once, not when cycles are looked for
    try:
        running(scenario)
    finally:
        gc.enable()


def test_requests_of_two_models_and_clients_that_leave_are_answered_right_under_load():
    async def scenario(engine):
        draws = np.random.default_rng(0)
        models = [Brightness(), Brightness()]

        async def client(number):
            for turn in range(40):
                wanted = draws.integers(0, 255, draws.integers(1, 8)).tolist()
                task = asyncio.create_task(
                    engine.answer(models[turn // 20], pictures(*wanted), is_urgent=bool(number % 4))
                )
                if draws.random() < 0.2:
                    await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                else:
                    assert shades(await task) == wanted

        await asyncio.gather(*(client(number) for number in range(16)))

    assert "\nqueue_depth 0.0\n" in running(scenario, wait_s=0.001)

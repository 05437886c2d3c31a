import jax
import numpy as np
import pytest

from aigc_jax.core.keys import normal
from aigc_jax.core.types import Model
from aigc_jax.data.sources import arrays
from aigc_jax.metrics.likelihood import evaluate_terms

IMAGE = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 1), dtype=np.uint8)
DATA = arrays({"image": IMAGE[:1]}, {"image": IMAGE})
MODEL = Model({"scale": 2.0}, {"offset": 1.0}, lambda *_: None)


def bound(params, stats, batch, keys):
    assert len(batch["image"]) == len(keys)
    value = params["scale"] * batch["image"].mean((1, 2, 3)) + stats["offset"]
    return {"nats": value, "twice": 2 * value}


@pytest.mark.parametrize(("n", "batch"), [(5, 2), (4, 2), (3, 8), (None, 3), (99, 5)])
def test_the_average_is_over_each_image_once(n, batch):
    expected = (2 * (IMAGE.astype(float) / 127.5 - 1).mean((1, 2, 3)) + 1)[:n]
    scores = evaluate_terms(MODEL, bound, DATA, n=n, batch=batch)
    assert scores == {
        f"nats/test-{len(expected)}": pytest.approx(expected.mean(), rel=1e-5),
        f"twice/test-{len(expected)}": pytest.approx(2 * expected.mean(), rel=1e-5),
    }


def test_an_image_meets_the_same_noise_however_they_are_batched():
    def noisy(params, stats, batch, keys):
        return {"noise": normal(keys, ())}

    one, other, third = (
        evaluate_terms(MODEL, noisy, DATA, batch=batch, seed=seed)["noise/test-5"]
        for batch, seed in [(2, 0), (5, 0), (5, 1)]
    )
    assert one == pytest.approx(other, rel=1e-5) and abs(one - third) > 1e-3


def test_one_program_does_for_all_batches():
    shapes = []

    def traced(params, stats, batch, keys):
        shapes.append(batch["image"].shape)
        return {"zero": jax.numpy.zeros(len(keys))}

    evaluate_terms(MODEL, traced, DATA, batch=2)
    assert shapes == [(2, 2, 2, 1)]

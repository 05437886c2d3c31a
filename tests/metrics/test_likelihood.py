import jax
import numpy as np
import pytest

from aigc_jax.core.keys import normal
from aigc_jax.core.types import Model
from aigc_jax.data.sources import arrays
from aigc_jax.metrics.likelihood import evaluate_bound

IMAGE = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 1), dtype=np.uint8)
DATA = arrays({"image": IMAGE[:1]}, {"image": IMAGE})
MODEL = Model({"scale": 2.0}, {"offset": 1.0}, lambda *_: None)


def bound(params, stats, batch, keys):
    assert len(batch["image"]) == len(keys)
    return params["scale"] * batch["image"].mean((1, 2, 3)) + stats["offset"]


@pytest.mark.parametrize(("n", "batch"), [(5, 2), (4, 2), (3, 8), (None, 3), (99, 5)])
def test_the_average_is_over_each_image_once(n, batch):
    expected = (2 * (IMAGE.astype(float) / 127.5 - 1).mean((1, 2, 3)) + 1)[:n]
    name = f"nats/test-{len(expected)}"
    scores = evaluate_bound(MODEL, bound, DATA, name="nats", n=n, batch=batch)
    assert scores == {name: pytest.approx(expected.mean(), rel=1e-5)}


def test_an_image_meets_the_same_noise_however_they_are_batched():
    def noisy(params, stats, batch, keys):
        return normal(keys, ())

    one, other, third = (
        evaluate_bound(MODEL, noisy, DATA, batch=batch, seed=seed)["bits_per_dim/test-5"]
        for batch, seed in [(2, 0), (5, 0), (5, 1)]
    )
    assert one == pytest.approx(other, rel=1e-5) and abs(one - third) > 1e-3


def test_one_program_does_for_all_batches():
    shapes = []

    def traced(params, stats, batch, keys):
        shapes.append(batch["image"].shape)
        return jax.numpy.zeros(len(keys))

    evaluate_bound(MODEL, traced, DATA, batch=2)
    assert shapes == [(2, 2, 2, 1)]

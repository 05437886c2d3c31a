import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.core.types import Out, Phase, Task
from aigc_jax.tasks.continual import consolidate, diagonal_fisher
from aigc_jax.train.step import init, make_step

X = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], np.float32)
Y = np.array([1.0, -1.0, 0.5], np.float32)
BATCH = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}


def fit(rate=0.1):
    """Fit x·w to y: an example's −log p is (x·w − y)²/2, of weight 2."""

    def loss(params, stats, batch, keys, mode):
        error = jnp.square(batch["x"] @ params["net"]["w"] - batch["y"]) / 4
        return Out(error, jnp.full(len(error), 2.0))

    start = lambda key, batch: ({"net": {"w": jnp.zeros(2)}, "other": jnp.zeros(1)}, {})
    return Task(start, (Phase("fit", ("net",), loss, optax.sgd(rate)),), lambda *args: None)


def test_the_fisher_is_the_mean_square_of_gradients():
    w = np.array([0.3, 0.7], np.float32)
    task, params = fit(), {"net": {"w": jnp.asarray(w)}, "other": jnp.zeros(1)}
    gradients = (X @ w - Y)[:, None] * X
    parts = [{k: v[:2] for k, v in BATCH.items()}, {k: v[2:] for k, v in BATCH.items()}]
    for batches in ([BATCH], parts):
        fisher = diagonal_fisher(task, "net", params, {}, batches)
        np.testing.assert_allclose(fisher["w"], (gradients**2).sum(0) / 6, rtol=1e-5)


def test_the_penalty_is_elastic():
    task = consolidate(fit(), "net", strength=3.0)
    w, anchor, fisher = (jnp.array(x) for x in ([0.3, 0.7], [0.0, 1.0], [2.0, 0.5]))
    params = {"net": {"w": w}, "anchor": {"w": anchor}, "fisher": {"w": fisher}}
    [plain], [held] = fit().phases, task.phases
    before = plain.loss(params, {}, BATCH, None, None)
    after = held.loss(params, {}, BATCH, None, None)
    expected = 1.5 * (2.0 * 0.3**2 + 0.5 * 0.3**2)
    np.testing.assert_allclose(after.loss - before.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(after.metrics["elastic"], expected, rtol=1e-5)
    np.testing.assert_array_equal(after.weight, before.weight)


def test_what_mattered_stays_and_the_rest_moves():
    task = consolidate(fit(), "net", strength=1.0)
    anchor = {"w": jnp.array([5.0, 5.0])}
    weights = {"net": anchor, "anchor": anchor, "fisher": {"w": jnp.array([9.0, 0.0])}}
    state = init(task, stream(0, "init"), BATCH, weights)
    step = jax.jit(make_step(task, seed=0))
    for _ in range(300):
        state, metrics = step(state, BATCH)
    w = np.asarray(state.params["net"]["w"])
    assert abs(w[0] - 5) < 0.5 < abs(w[1] - 5)
    np.testing.assert_array_equal(state.params["anchor"]["w"], anchor["w"])
    assert metrics["fit/elastic"].total > 0


def test_without_strength_it_is_the_task():
    ours, plain = consolidate(fit(), "net", 0.0), fit()
    weights = {"anchor": {"w": jnp.ones(2)}, "fisher": {"w": jnp.ones(2)}}
    a, b = init(ours, stream(0, "init"), BATCH, weights), init(plain, stream(0, "init"), BATCH)
    a, _ = make_step(ours, seed=0)(a, BATCH)
    b, _ = make_step(plain, seed=0)(b, BATCH)
    np.testing.assert_array_equal(a.params["net"]["w"], b.params["net"]["w"])


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="strength=-1 must be at least 0"):
        consolidate(fit(), "net", -1)
    with pytest.raises(ValueError, match=r"no phase trains network='other'; they train \['net'\]"):
        consolidate(fit(), "other", 1)
    with pytest.raises(ValueError, match="no phase trains network='other'"):
        diagonal_fisher(fit(), "other", {}, {}, [BATCH])
    with pytest.raises(ValueError, match="batches is empty"):
        diagonal_fisher(fit(), "net", {"net": {"w": jnp.zeros(2)}}, {}, [])

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.types import Mode
from aigc_jax.models.gpt import GPT
from aigc_jax.nn.quantizer import FiniteScalarQuantizer, VectorQuantizer
from aigc_jax.tasks.vqvae import code_nats, decode, encode, vqvae, vqvae_terms
from aigc_jax.train.step import init, make_step


class Scale(nn.Module):
    """Multiply a 2×2 image of one channel."""

    by: float = 1.0

    @nn.compact
    def __call__(self, x):
        return x * self.param("by", nn.initializers.constant(self.by), ())


PRIOR = GPT(8, 4, 1, 2, 8, classes=2)
QUANTIZER = VectorQuantizer(8, 1, restart=0.5, decay=0.8)
# Each image is of one level, low or high by its label: whoever has learned that knows the codes.
LABEL = np.arange(8, dtype=np.int32) % 2
IMAGE = np.broadcast_to((LABEL - 0.5)[:, None, None, None], (8, 2, 2, 1)).astype(np.float32)
BATCH = {"image": jnp.asarray(IMAGE), "label": jnp.asarray(LABEL)}
KEYS = example_keys(stream(0, "test"), jnp.arange(8))


def make(quantizer=QUANTIZER, prior=PRIOR, **options):
    if prior is not None:
        options = {"prior_tx": optax.adam(3e-2), "grid": (2, 2), "classes": 2} | options
    return vqvae(Scale(), quantizer, Scale(), optax.adam(1e-2), prior=prior, **options)


@functools.cache
def trained(steps=60):
    task = make(prior_start=10)
    state = jax.jit(lambda key: init(task, key, BATCH))(stream(0, "init"))
    step, history = jax.jit(make_step(task, seed=0)), []
    for _ in range(steps):
        state, metrics = step(state, BATCH)
        history.append(jax.tree.map(float, metrics))
    return task, state, history


def test_loss_is_error_over_variance_and_commitment():
    task = make(VectorQuantizer(2, 1, "gradient"), None, data_variance=0.5)
    params = {
        "encoder": {"by": jnp.float32(2.0)},
        "quantizer": {"vectors": jnp.array([[-0.5], [1.5]])},
        "decoder": {"by": jnp.float32(0.5)},
    }
    out = task.phases[0].loss(params, {}, BATCH, KEYS, Mode(train=True))
    # ∓½ is encoded as ∓1, rounded to −½ or 1½, and decoded to −¼ or ¾: off by ¼ either way.
    np.testing.assert_allclose(out.metrics["reconstruction"], 0.25**2 / 0.5)
    np.testing.assert_allclose(out.metrics["codes"], 1.25 * 0.5**2)
    np.testing.assert_allclose(out.loss, 0.125 + 0.3125)
    assert out.stats == {}
    images = task.sample(params, {}, KEYS, {"image": BATCH["image"]})
    np.testing.assert_allclose(images, IMAGE + 0.25)


def test_it_learns_to_reconstruct_and_the_prior_to_know_the_codes():
    task, state, history = trained()
    assert [phase.name for phase in task.phases] == ["vqvae", "prior"]
    first, last = history[0], history[-1]
    assert last["vqvae/loss"].total / 8 < 0.01 < first["vqvae/loss"].total / 8
    assert not history[9]["prior/loss"].weight and history[10]["prior/loss"].weight == 8
    assert history[10]["prior/loss"].total / 8 > 4 > 0.5 > last["prior/loss"].total / 8  # 4 log 8
    images = jax.jit(task.sample)(state.params, state.stats, KEYS, {"image": BATCH["image"]})
    np.testing.assert_allclose(images, IMAGE, atol=0.1)


def test_samples_are_of_the_class_asked_for_whatever_the_batch():
    task, state, _ = trained()
    sample = jax.jit(task.sample)
    label = jnp.array([0, 1, 1, 0])
    images = sample(state.params, state.stats, KEYS[:4], {"label": label})
    np.testing.assert_allclose(
        images, np.broadcast_to(label[:, None, None, None] - 0.5, images.shape), atol=0.1
    )
    at_random = sample(state.params, state.stats, KEYS, {})
    assert {float(x) > 0 for x in at_random.mean((1, 2, 3))} == {True, False}


def test_codes_are_decoded_as_they_are_given():
    task, state, _ = trained()
    networks = Scale(), QUANTIZER
    z = encode(*networks, state.params, state.stats, BATCH["image"])
    assert z.shape == (8, 2, 2)
    images = task.sample(state.params, state.stats, KEYS, {"z": z})
    reconstructed = task.sample(state.params, state.stats, KEYS, {"image": BATCH["image"]})
    np.testing.assert_allclose(images, reconstructed, atol=1e-6)
    far = decode(QUANTIZER, Scale(), _scaled(state.params, 100.0), state.stats, z)
    clipped = task.sample(_scaled(state.params, 100.0), state.stats, KEYS, {"z": z})
    assert jnp.abs(far).max() > 1 == jnp.abs(clipped).max()


def _scaled(params, by):
    return params | {"decoder": {"by": jnp.float32(by)}}


def test_the_priors_gradient_reaches_no_other_network():
    task, state, _ = trained()
    loss = lambda params: (
        task.phases[1].loss(params, state.stats, BATCH, KEYS, Mode(True)).loss.sum()
    )
    gradient = jax.jit(jax.grad(loss))(state.params)
    for name, of in gradient.items():
        assert any(x.any() for x in jax.tree.leaves(of)) == (name == "prior")


def test_nats_are_those_of_codes_drawn_one_by_one():
    _, state, _ = trained()
    prior = {"params": state.params["prior"]}
    nats = jax.jit(code_nats(Scale(), QUANTIZER, PRIOR, classes=2))(
        state.params, state.stats, BATCH
    )
    logits = jax.jit(lambda tokens: jax.nn.log_softmax(PRIOR.apply(prior, tokens)))
    index = encode(Scale(), QUANTIZER, state.params, state.stats, BATCH["image"]).reshape(8, 4)
    total, read = np.zeros(8), np.zeros((8, 4), np.int32)
    for i in range(4):
        read[:, i] = 8 + LABEL if i == 0 else index[:, i - 1]  # what follows is not read yet
        total -= np.asarray(logits(read))[np.arange(8), i, np.asarray(index[:, i])]
    np.testing.assert_allclose(nats, total, rtol=1e-4, atol=1e-5)


def test_terms_are_of_the_same_model():
    _, state, _ = trained()
    terms = jax.jit(
        vqvae_terms(Scale(), QUANTIZER, Scale(), data_variance=0.25, prior=PRIOR, classes=2)
    )(state.params, state.stats, BATCH, KEYS)
    assert {name: x.shape for name, x in terms.items()} == dict.fromkeys(
        ("mse", "mse_variance", "code_nats"), (8,)
    )
    np.testing.assert_allclose(terms["mse_variance"], 4 * terms["mse"])
    assert terms["mse"].max() < 0.01 and terms["code_nats"].mean() < 0.5


def test_finite_scalars_serve_as_well():
    task = make(FiniteScalarQuantizer((5,)), None)
    params, stats = task.init(stream(0, "init"), BATCH)
    assert stats == {}
    loss = lambda params: task.phases[0].loss(params, {}, BATCH, KEYS, Mode(True)).loss.sum()
    params["decoder"]["by"] = jnp.float32(0.5)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    # ∓½ are rounded to ∓½, as 2·tanh(½) is to 1, and decoded to ∓¼.
    assert float(value) == pytest.approx(8 / 16, abs=1e-5)
    slope = 1.001 / np.cosh(0.5) ** 2  # of 2.002·tanh(by·x)/2 by its argument, at ½
    expected = 8 * 2 * 0.25 * -0.5 * slope * 0.5  # error · decoder · slope · x
    assert float(gradient["encoder"]["by"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_variance": 0.0}, "data_variance=0.0 must be above 0"),
        ({"prior_tx": None}, "a prior needs prior_tx"),
        ({"prior": None, "classes": 2}, "classes=2, prior_tx and grid=None are for a prior"),
        ({"grid": (2, 3)}, "the prior's context=4 must be 6 here"),
        ({"classes": 3}, "the prior's classes=2 must be 3 here"),
        ({"quantizer": FiniteScalarQuantizer((3, 3))}, "the prior's vocabulary=8 must be 9 here"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**options)


def test_without_a_prior_nothing_can_be_drawn():
    task = make(prior=None)
    params, stats = jax.eval_shape(task.init, stream(0, "init"), BATCH)
    assert params.keys() == {"encoder", "quantizer", "decoder"}
    with pytest.raises(ValueError, match=r"^prior=None: this model draws nothing"):
        jax.eval_shape(task.sample, params, stats, KEYS, {})


def test_the_grid_is_the_encoders():
    task = make(prior=GPT(8, 4, 1, 2, 8, classes=1), grid=(4, 1), classes=0)
    with pytest.raises(
        ValueError, match=r"^grid=\(4, 1\); the encoder makes \(2, 2\) of \(2, 2, 1\)"
    ):
        jax.eval_shape(task.init, stream(0, "init"), BATCH)

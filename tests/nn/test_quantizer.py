import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.functional.quantize import perplexity
from aigc_jax.nn.quantizer import FiniteScalarQuantizer, VectorQuantizer

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(4, 2, 3, 5)), jnp.float32)


def keys(step=0, n=4):
    return example_keys(jax.random.fold_in(stream(0, "test"), step), jnp.arange(n))


@functools.cache
def make(**options):
    quantizer = VectorQuantizer(8, 5, **options)
    return jax.jit(quantizer.apply, static_argnames=("train", "mutable", "method")), jax.jit(
        quantizer.init
    )(stream(0, "init"), X)


def test_it_returns_codes_of_its_codebook_and_what_commits_to_them():
    apply, variables = make(restart=0.0)
    codes, index, loss = apply(variables, X)
    assert codes.shape == X.shape and index.shape == (4, 2, 3) and index.dtype == jnp.int32
    np.testing.assert_allclose(codes, apply(variables, index, method="read"), atol=1e-6)
    distance = jnp.square(X - codes)
    np.testing.assert_allclose(loss, 0.25 * distance.mean((1, 2, 3)), rtol=1e-5)
    # The gradient passes the codes by: that of Σ codes is 1, beside the commitment's.
    gradient = jax.grad(lambda x: apply(variables, x).codes.sum())(X)
    np.testing.assert_array_equal(gradient, 1)


def test_averages_move_as_the_paper_says_and_only_in_training():
    apply, variables = make(restart=0.0, decay=0.9)
    _, index, _ = apply(variables, X)  # nothing is mutable, so nothing may move
    _, after = apply(variables, X, train=True, mutable="codebook")
    old, new = variables["codebook"], after["codebook"]
    for i in range(8):
        mine = np.asarray(X)[np.asarray(index) == i]
        np.testing.assert_allclose(
            new["frequency"][i], 0.9 * old["frequency"][i] + 0.1 * len(mine) / 24, rtol=1e-5
        )
        expected = 0.9 * old["sums"][i] + 0.1 * mine.sum(0) / 24
        np.testing.assert_allclose(new["sums"][i], expected, atol=1e-6)


def test_what_parts_of_a_batch_propose_averages_to_what_the_whole_does():
    apply, variables = make(restart=0.25)
    move = lambda part: apply(variables, X[part], keys()[part], train=True, mutable="codebook")[1]
    mean = jax.tree.map(lambda *x: sum(x) / 2, move(slice(0, 2)), move(slice(2, 4)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, move(slice(0, 4)))


def test_a_gradient_codebook_descends_to_the_vectors():
    apply, variables = make(codebook="gradient")
    assert variables.keys() == {"params"}
    loss = lambda variables: apply(variables, X).loss.sum()
    gradient = jax.grad(loss)(variables)["params"]["vectors"]
    codes, index, value = apply(variables, X)
    np.testing.assert_allclose(value, 1.25 * jnp.square(X - codes).mean((1, 2, 3)), rtol=1e-5)
    for i in range(8):
        mine = np.asarray(index) == i
        expected = 2 * (np.asarray(codes) - np.asarray(X))[mine].sum(0) / 30
        np.testing.assert_allclose(gradient[i], expected, atol=1e-5)


def test_a_codebook_of_zeros_finds_the_data_and_dead_codes_come_back():
    """Sixteen codes for eight clusters; then all the data moves away, and they follow."""
    quantizer = VectorQuantizer(16, 2, decay=0.9, restart=1 / 16)
    angle = 2 * jnp.pi * jnp.arange(8) / 8
    centres = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)

    @jax.jit
    def steps(codebook, start, centre):
        def step(codebook, i):
            own = jax.random.split(jax.random.fold_in(jax.random.key(1), start + i))
            which = jax.random.randint(own[0], (16, 8), 0, 8)
            x = centre + centres[which] + 0.01 * jax.random.normal(own[1], (16, 8, 2))
            variables = {"codebook": codebook}
            (_, _, loss), after = quantizer.apply(
                variables, x, keys(start + i, 16), train=True, mutable="codebook"
            )
            return after["codebook"], loss.mean() / 0.25

        return jax.lax.scan(step, codebook, jnp.arange(80))

    codebook = quantizer.init(stream(0, "init"), jnp.zeros((1, 1, 2)))["codebook"]
    assert not any(x.any() for x in codebook.values())
    for start, centre, most in ((0, 0.0, 2e-3), (80, 10.0, 0.05)):
        codebook, errors = steps(codebook, start, centre)
        # All of them about their common mean: ½ a channel. The noise alone: 1e-4.
        assert errors[0] > 0.4 and errors[-20:].max() < most
        assert perplexity(codebook["frequency"]) > 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook": "none"}, "codebook='none' must be one of 'ema', 'gradient'"),
        ({"codes": 0}, "codes=0 must be at least 1"),
        ({"commitment": -1.0}, "commitment=-1.0 must be at least 0"),
        ({"decay": 1.0}, r"decay=1.0 must lie in \[0, 1\)"),
        ({"restart": 2.0}, r"restart=2.0 must lie in \[0, 1\]"),
        ({"width": 4}, "width=4 of the codes; the vectors have 5"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        jax.eval_shape(VectorQuantizer(**{"width": 5} | options).init, jax.random.key(0), X)


def test_restarts_need_keys():
    apply, variables = make(restart=0.25)
    with pytest.raises(ValueError, match=r"^keys=None; "):
        apply(variables, X, train=True, mutable="codebook")


def test_finite_scalars_have_neither_parameters_nor_a_loss():
    quantizer = FiniteScalarQuantizer((8, 5, 5, 4, 3))
    assert quantizer.codes == 2400 and quantizer.width == 5
    assert quantizer.init(stream(0, "init"), X) == {}
    codes, index, loss = quantizer.apply({}, X, keys(), train=True)
    assert index.shape == (4, 2, 3) and index.dtype == jnp.int32 and index.max() < 2400
    np.testing.assert_allclose(quantizer.apply({}, index, method="read"), codes, atol=1e-6)
    assert loss.tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"^levels=\(8, 5\); the vectors have 5 channels"):
        FiniteScalarQuantizer((8, 5)).apply({}, X)

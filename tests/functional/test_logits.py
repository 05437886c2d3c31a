import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.functional.logits import (
    adjust_logits,
    divide_by_temperature,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
)

LOGITS = np.random.default_rng(0).normal(size=(3, 11)).astype(np.float32) * 2
P = np.array([[0.4, 0.05, 0.3, 0.05, 0.2]], np.float32)
LOG_P = np.log(P)
INF = np.inf


def kept(logits):
    return (np.asarray(logits) > -INF).astype(int).tolist()


def test_a_penalty_divides_what_is_positive_and_multiplies_the_rest():
    logits = jnp.array([[3.0, -3.0, 3.0, -3.0, 0.0]] * 2)
    tokens = jnp.array([[0, 1, 0, 4], [2, 2, 2, 2]])
    penalised = penalise_repetition(logits, tokens, None, 1.5)
    # Once, however often a token has occurred.
    assert penalised.tolist() == [[2.0, -4.5, 3.0, -3.0, 0.0], [3.0, -3.0, 2.0, -3.0, 0.0]]


def test_a_penalty_is_for_tokens_that_count():
    logits = jnp.array([[3.0, 3.0, 3.0]])
    counts = jnp.array([[False, True, False]])
    assert penalise_repetition(logits, jnp.array([[0, 1, 2]]), counts, 3.0).tolist() == [[3, 1, 3]]


def test_a_temperature_is_a_power_of_the_probabilities():
    powered = P.astype(np.float64) ** (1 / 0.7)
    actual = jax.nn.softmax(divide_by_temperature(LOG_P, 0.7))
    np.testing.assert_allclose(actual, powered / powered.sum(), rtol=1e-5)


def test_without_temperature_the_first_of_the_likeliest_is_left():
    assert kept(divide_by_temperature(jnp.array([[1.0, 4.0, 4.0]]), 0.0)) == [[0, 1, 0]]
    coldest = jax.nn.softmax(divide_by_temperature(LOGITS, 0.0))
    np.testing.assert_array_equal(coldest, np.eye(11)[LOGITS.argmax(-1)])


@pytest.mark.parametrize("k", [1, 4, 10])
def test_top_k_keeps_the_k_likeliest_as_they_were(k):
    for shift in (0.0, -20.0, 20.0):
        logits = LOGITS + np.float32(shift)
        expected = np.where(np.argsort(np.argsort(-logits)) < k, logits, -INF)
        np.testing.assert_array_equal(keep_top_k(logits, k), expected)


def test_top_k_keeps_ties_and_may_ask_for_more_than_there_is():
    assert kept(keep_top_k(jnp.array([[1.0, 2.0, 1.0, 0.0]]), 2)) == [[1, 1, 1, 0]]
    assert kept(keep_top_k(jnp.array([[-0.0, -1e-9, 0.0, -1.0]]), 1)) == [[1, 0, 1, 0]]
    assert kept(keep_top_k(jnp.array([[-INF, 3.0, -INF, -INF]]), 3)) == [[0, 1, 0, 0]]
    np.testing.assert_array_equal(keep_top_k(LOGITS, 12), LOGITS)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.01, [1, 0, 0, 0, 0]),
        (0.39, [1, 0, 0, 0, 0]),
        (0.41, [1, 0, 1, 0, 0]),
        (0.69, [1, 0, 1, 0, 0]),
        (0.71, [1, 0, 1, 0, 1]),
        (0.89, [1, 0, 1, 0, 1]),
        (0.91, [1, 1, 1, 1, 1]),  # the two least likely are equally so
    ],
)
def test_the_nucleus_is_the_least_set_of_that_mass(p, expected):
    logits = keep_top_p(LOG_P, p)
    assert kept(logits) == [expected]
    np.testing.assert_array_equal(logits[0, 0], LOG_P[0, 0])


def test_a_nucleus_ends_at_its_mass_exactly():
    assert kept(keep_top_p(jnp.log(jnp.array([0.5, 0.25, 0.125, 0.125])), 0.75)) == [1, 1, 0, 0]


def test_a_nucleus_of_nearly_nothing_holds_one_and_of_nearly_all_no_fewer_than_it_needs():
    assert np.sum(kept(keep_top_p(LOGITS, 1e-9))) == 3
    many = np.random.default_rng(1).normal(size=(2, 5000)).astype(np.float32)
    p = np.asarray(jax.nn.softmax(many)).astype(np.float64)
    for row, mask in zip(p, np.array(kept(keep_top_p(many, 0.9)), bool), strict=True):
        assert row[mask].sum() >= 0.9 - 1e-5 and row[mask].sum() - row[mask].min() < 0.9 + 1e-5
        assert row[mask].min() > row[~mask].max()


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.1, [1, 1, 1, 1, 1]),
        (0.3, [1, 0, 1, 0, 1]),
        (0.6, [1, 0, 1, 0, 0]),
        (1.0, [1, 0, 0, 0, 0]),
    ],
)
def test_min_p_is_a_share_of_the_likeliest(p, expected):
    assert kept(keep_min_p(LOG_P, p)) == [expected]


def test_all_is_off_by_default():
    np.testing.assert_array_equal(adjust_logits(LOGITS), LOGITS)
    assert adjust_logits(LOGITS.astype(jnp.bfloat16)).dtype == jnp.float32


def test_further_axes_are_rows():
    options = {"temperature": 0.8, "top_k": 6, "top_p": 0.8, "min_p": 0.05}
    rows = adjust_logits(LOGITS, **options)
    np.testing.assert_array_equal(adjust_logits(LOGITS[:, None], **options), rows[:, None])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # A penalty first: token 0 falls behind 2 before the k likeliest are chosen.
        ({"repetition_penalty": 4.0, "top_k": 1}, [0, 0, 1, 0, 0]),
        # Temperature before the nucleus: a flatter distribution needs more tokens.
        ({"temperature": 9.0, "top_p": 0.69}, [1, 1, 1, 1, 1]),
        ({"temperature": 0.1, "top_p": 0.69}, [1, 0, 0, 0, 0]),
        # Top-k before the nucleus: of 4/7 and 3/7 the first suffices, of 0.4 and 0.3 it does not.
        ({"top_k": 2, "top_p": 0.5}, [1, 0, 0, 0, 0]),
        # Temperature before min-p: at infinity all are alike.
        ({"temperature": 9.0, "min_p": 0.7}, [1, 1, 1, 1, 1]),
        ({"temperature": 0.0, "min_p": 0.1, "top_p": 0.9}, [1, 0, 0, 0, 0]),
    ],
)
def test_the_order(options, expected):
    logits = jnp.asarray(LOG_P) + 1.5  # so that the likeliest three are positive
    tokens = jnp.array([[0, 0]])
    assert kept(adjust_logits(logits, tokens, **options)) == [expected]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "at least 0"),
        ("temperature", float("nan"), "at least 0"),
        ("top_k", -1, "at least 0"),
        ("top_p", 0.0, r"lie in \(0, 1\]"),
        ("top_p", 1.5, r"lie in \(0, 1\]"),
        ("min_p", -0.1, r"lie in \[0, 1\]"),
        ("min_p", 1.1, r"lie in \[0, 1\]"),
        ("repetition_penalty", 0.0, "more than 0"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name, value, allowed):
    with pytest.raises(ValueError, match=f"^{name}={value} must.*{allowed}"):
        adjust_logits(LOGITS, jnp.zeros((3, 1), jnp.int32), **{name: value})


def test_a_penalty_without_tokens_is_refused():
    with pytest.raises(ValueError, match=r"^repetition_penalty=2\.0 needs"):
        adjust_logits(LOGITS, repetition_penalty=2.0)

import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.shapes import batch_size, expand, mean_flat, sum_flat


def test_batch_size_is_the_length_all_leaves_lead_with():
    batch = {"image": np.zeros((3, 4, 4, 1)), "more": {"label": jnp.zeros(3)}}
    assert batch_size(batch) == 3
    assert batch_size(np.zeros((0, 2))) == 0


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "holds no arrays"),
        ({"image": np.zeros((3, 2)), "label": np.zeros(2)}, r"batch\['label'\] has shape \(2,\)"),
        ({"a": np.zeros(3), "b": {"c": np.zeros(())}}, r"batch\['b'\]\['c'\] has shape \(\)"),
        ({"a": np.zeros(())}, r"batch\['a'\] has shape \(\)"),
        ({"a": np.zeros(()), "b": np.zeros(3)}, r"\['a'\] has shape \(\); .* lead with \(3,\)$"),
    ],
)
def test_batch_size_names_the_leaf_that_disagrees(batch, message):
    with pytest.raises(ValueError, match=message):
        batch_size(batch)


@pytest.mark.parametrize(("ndim", "shape"), [(1, (2,)), (2, (2, 1)), (4, (2, 1, 1, 1))])
def test_expand_appends_axes(ndim, shape):
    x = jnp.array([1.0, 2.0])
    assert expand(x, ndim).shape == shape
    assert expand(x, ndim).ravel().tolist() == [1.0, 2.0]


def test_expand_takes_one_axis():
    with pytest.raises(AssertionError, match="rank"):
        expand(jnp.zeros((2, 2)), 3)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 4, 5)])
def test_mean_and_sum_are_each_examples_own(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows = x.reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(mean_flat(jnp.asarray(x)), rows.mean(1), atol=1e-6)
    np.testing.assert_allclose(sum_flat(jnp.asarray(x)), rows.sum(1), atol=1e-5)


@pytest.mark.parametrize("reduce", [mean_flat, sum_flat])
def test_what_has_no_examples_is_not_reduced(reduce):
    with pytest.raises(AssertionError):
        reduce(jnp.zeros(()))

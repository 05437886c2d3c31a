import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from aigc_jax.metrics.neighbours import nearest, squared_distances, within


def all_distances(x, y):
    return np.linalg.norm(x[:, None].astype(float) - y[None].astype(float), axis=-1)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    chunk=st.integers(1, 15),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_neighbours_are_those_of_a_full_sort_however_chunked(n, m, chunk, seed, data):
    k = data.draw(st.integers(1, m))
    rng = np.random.default_rng(seed)
    # Few levels in one dimension, so that ties and duplicates are common.
    x, y = rng.integers(0, 4, size=(n, 1)), rng.integers(0, 4, size=(m, 1))
    full = all_distances(x, y)
    index, distance = nearest(x, y, k=k, chunk=chunk)
    assert_array_equal(index, np.argsort(full, axis=1, kind="stable")[:, :k])
    assert_allclose(distance, np.take_along_axis(full, index, axis=1))


def test_pictures_are_compared_by_their_pixels():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, size=(20, 4, 4, 3), dtype=np.uint8)
    samples = training[[7, 3]].copy()
    samples[1, 0, 0, 0] ^= 8
    index, distance = nearest(samples, training, chunk=6)
    assert index[:, 0].tolist() == [7, 3]
    assert_allclose(distance[:, 0], [0, 8])


def test_a_copy_is_at_exactly_zero_far_from_the_origin():
    x = (1e4 + np.random.default_rng(1).normal(size=(50, 64))).astype(np.float32)
    index, distance = nearest(x, x, chunk=16)
    assert_array_equal(index[:, 0], np.arange(50))
    assert (distance == 0).all()


def test_float32_features_in_tight_far_classes_keep_their_distances():
    # In float32 the matrix product's rounding, about 0.5 here, exceeds these distances of 0.01.
    rng = np.random.default_rng(2)
    x = (1e3 * rng.integers(0, 2, size=(40, 1)) + 0.01 * rng.normal(size=(40, 8))).astype(
        np.float32
    )
    assert_allclose(np.sqrt(squared_distances(x, x)), all_distances(x, x), atol=1e-4)


def test_within_counts_balls_and_points_however_chunked():
    rng = np.random.default_rng(3)
    points, centres = rng.normal(size=(23, 2)), rng.normal(size=(17, 2))
    radii = rng.uniform(0, 1, size=17)
    inside = all_distances(points, centres) <= radii
    assert 0 < inside.sum() < inside.size
    for chunk in (1, 5, 17, 100):
        holders, held = within(points, centres, radii, chunk=chunk)
        assert_array_equal(holders, inside.sum(axis=1))
        assert_array_equal(held, inside.sum(axis=0))


def test_a_point_on_the_boundary_is_inside_whatever_the_rounding():
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(200, 32)) + 1e4
    points = np.roll(centres, 1, axis=0)
    radii = np.linalg.norm(points - centres, axis=1)
    held = within(points, centres, radii)[1]
    assert (held >= 1).all()
    # Just outside is outside.
    alone = [
        within(points[i : i + 1], centres[i : i + 1], radii[i : i + 1] * (1 - 1e-6))
        for i in range(200)
    ]
    assert not any(held.any() for _, held in alone)


def test_k_out_of_range_and_empty_sets_are_refused():
    x = np.zeros((3, 2))
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"^k={k} must be from 1 to the 3 references$"):
            nearest(x, x, k=k)
    with pytest.raises(ValueError, match=r"^queries has shape \(0, 4\)"):
        nearest(np.zeros((0, 2, 2, 1)), np.zeros((3, 2, 2, 1)))

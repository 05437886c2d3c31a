import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from aigc_jax.core.types import Model
from aigc_jax.metrics.latents import (
    interpolation_film,
    interpolation_grid,
    picture_encodings,
    picture_latents,
    slerp,
    sweep,
    traverse,
)


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shade(z):
    """Images of 2x3 pixels, each of the level of the first coordinate."""
    return np.asarray(z)[:, :1, None, None] * np.ones((2, 3, 1), np.float32)


def levels(grid, columns, pad=0):
    """The level of each image of a grid of those, row by row: (rows, columns)."""
    return grid[pad :: 2 + pad, pad :: 3 + pad, 0][:, :columns]


def test_slerp_starts_at_one_vector_and_ends_at_the_other():
    a, b = draws(2, 5, 16)
    assert_array_equal(slerp(a, b, 0), a)
    assert_array_equal(slerp(a, b, 1), b)
    assert slerp(a, b, 0.5).dtype == np.float32


def test_halfway_between_orthonormal_vectors_is_their_sum_over_root_two():
    a, b = np.eye(4)[:2]
    assert_allclose(slerp(a, b, 0.5), (a + b) / np.sqrt(2), rtol=1e-6)


def test_slerp_turns_at_a_constant_rate_and_keeps_the_norm():
    a, b = draws(2, 8)
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    path = slerp(a, b, np.linspace(0, 1, 9)).astype(np.float64)
    norms = np.linalg.norm(path, axis=-1)
    assert_allclose(norms, norms[0], rtol=1e-6)
    angles = np.arccos((path[1:] * path[:-1]).sum(-1) / norms[0] ** 2)
    assert_allclose(angles, np.arccos(a @ b / norms[0] ** 2) / 8, rtol=1e-4)


def test_slerp_is_the_published_formula():
    a, b = draws(2, 6, 16).astype(np.float64)
    theta = np.arccos((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
    w = np.sin(0.3 * theta) / np.sin(theta)
    v = np.sin(0.7 * theta) / np.sin(theta)
    assert_allclose(slerp(a, b, 0.3), v[:, None] * a + w[:, None] * b, rtol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 2.0, 1 + 1e-7, -1.0, -3.0])
def test_between_vectors_on_one_line_slerp_is_linear(factor):
    a = draws(8)
    assert_allclose(slerp(a, factor * a, 0.25), (0.75 + 0.25 * factor) * a, atol=1e-6)


def test_slerp_is_finite_wherever_it_is_asked():
    zero, a = np.zeros(3), np.array([1.0, 0.0, 0.0])
    assert_array_equal(slerp(zero, zero, 0.5), zero)
    assert np.isfinite(slerp(zero, a, 0.5)).all() and np.isfinite(slerp(a, zero, 0.5)).all()
    # Nearly parallel and nearly opposite, on both sides of what is taken for it.
    for sign in (1, -1):
        for angle in 10.0 ** -np.arange(1, 12):
            b = sign * np.array([np.cos(angle), np.sin(angle), 0])
            assert np.linalg.norm(slerp(a, b, 0.3)) <= 1 + 1e-5


def test_fractions_broadcast_against_the_vectors():
    a, b = draws(2, 3, 8)
    t = np.linspace(0, 1, 4)
    table = slerp(a[:, None], b[:, None], t)
    assert table.shape == (3, 4, 8)
    assert_array_equal(table[1, 2], slerp(a[1], b[1], t[2]))
    assert_array_equal(slerp(a, b, t[:3]), [slerp(*each) for each in zip(a, b, t[:3], strict=True)])


def test_a_row_of_the_grid_leads_from_one_latent_to_its_partner():
    a = np.array([[1.0, 0.0], [-1.0, 0.0]])
    b = np.array([[0.0, 1.0], [0.0, 1.0]])
    grid = interpolation_grid(shade, a, b, 4, pad=1)
    assert grid.shape == (2 * 3 + 1, 4 * 4 + 1, 3)
    # The first coordinate is the cosine of 0, 30, 60 and 90 degrees.
    cosines = np.cos(np.linspace(0, np.pi / 2, 4))
    expected = np.rint((np.stack([cosines, -cosines]) + 1) * 127.5)
    assert_allclose(levels(grid, 4, pad=1), expected, atol=1)
    assert interpolation_grid(shade, a, b, 4, pad=1, scale=3).shape == (2 * 7 + 1, 4 * 10 + 1, 3)


def test_a_film_passes_every_latent_and_returns():
    z = np.eye(3)[:, :2] + 0.0  # the third stop is the origin
    film = interpolation_film(shade, z, 4, pad=0)
    assert film.shape == (12, 2, 3, 3) and film.dtype == np.uint8
    path = [slerp(z[i], z[(i + 1) % 3], t / 4)[0] for i in range(3) for t in range(4)]
    assert_array_equal(film[:, 0, 0, 0], np.rint((np.array(path) + 1) * 127.5))
    assert film[[0, 4, 8], 0, 0, 0].tolist() == [255, 128, 128]


def test_a_film_moves_several_images_side_by_side():
    z = draws(3, 4, 8)
    both = interpolation_film(shade, z, 5, columns=2, pad=0)
    assert both.shape == (15, 4, 6, 3)
    for k, corner in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        alone = interpolation_film(shade, z[:, k], 5, pad=0)
        assert_array_equal(both[:, corner[0], corner[1]], alone[:, 0, 0])


def test_a_sweep_has_a_row_for_each_value():
    noise = draws(3, 1) / 4
    grid = sweep(lambda value: shade(noise * value), (0.0, 0.5, 1.0, 2.0), pad=0)
    assert grid.shape == (4 * 2, 3 * 3, 3)
    expected = np.rint((noise[:, 0] * [[0], [0.5], [1], [2]] + 1) * 127.5).clip(0, 255)
    assert_array_equal(levels(grid, 3), expected)


def test_what_cannot_be_pictured_is_refused():
    z = draws(2, 4)
    with pytest.raises(ValueError, match=r"^a has shape \(2, 4\) and b \(1, 4\); both must be"):
        interpolation_grid(shade, z, z[:1])
    with pytest.raises(ValueError, match=r"^steps=1 must be at least 2$"):
        interpolation_grid(shade, z, z, 1)
    with pytest.raises(ValueError, match=r"^latents has shape \(4,\); stops are"):
        interpolation_film(shade, z[0])
    with pytest.raises(ValueError, match=r"^frames=0 must be at least 1$"):
        interpolation_film(shade, z, 0)
    with pytest.raises(ValueError, match=r"same shape"):
        sweep(lambda n: shade(draws(n, 4)), (1, 2))
    with pytest.raises(ValueError, match=r"at least one"):
        sweep(shade, ())


@pytest.mark.parametrize("classes", [0, 3])
def test_a_models_latents_are_pictured_with_their_labels(classes):
    asked = []

    def draw(n, cond, truncation=1.0):
        assert cond["z"].shape == (n, 5)
        assert ("label" in cond) == bool(classes)
        asked.append(cond.get("label"))
        return truncation * np.tanh(cond["z"][:, :1, None, None]) * np.ones((8, 8, 1))

    pictures = picture_latents(Model({}, {}, draw), 5, classes=classes)
    assert pictures["interpolation"].shape == (82, 102, 3)
    assert pictures["walk"].shape == (48, 42, 42, 3)
    assert pictures["truncation"].shape == (42, 102, 3)
    if classes:
        assert_array_equal(asked[0][:20], [0] * 10 + [1] * 10)
        assert_array_equal(asked[1][:20], [*np.arange(16) % 3, 0, 1, 2, 0])
    drawn = pictures["truncation"][2::10, 2::10, 0].astype(int)  # a pixel of each image
    assert list(np.ptp(drawn, axis=1)) == sorted(np.ptp(drawn, axis=1))
    assert np.ptp(drawn[0]) < np.ptp(drawn[-1])


def test_a_traverse_changes_one_dimension_a_row():
    seen = []

    def decode(z):
        seen.append(z)
        return shade(z)

    z, values = np.array([0.5, -0.25, 0.0]), (-1.0, 0.0, 1.0)
    grid = traverse(decode, z, (2, 0), values, pad=0)
    assert grid.shape == (2 * 2, 3 * 3, 3)
    path = seen[0].reshape(2, 3, 3)
    assert_array_equal(path[0], [[0.5, -0.25, value] for value in values])
    assert_array_equal(path[1], [[value, -0.25, 0.0] for value in values])
    assert_allclose(levels(grid, 3), [[191, 191, 191], [0, 128, 255]], atol=1)
    with pytest.raises(ValueError, match=r"^dims holds 3; those of z are 0 to 2$"):
        traverse(decode, z, (1, 3))
    with pytest.raises(ValueError, match=r"^z has shape \(1, 3\); it must be \(d,\)$"):
        traverse(decode, z[None], (1,))


@pytest.mark.parametrize("labelled", [False, True])
def test_encodings_are_pictured_beside_their_originals(labelled):
    """Of an autoencoder whose latent is the level of an image, and dimensions that say nothing."""

    def originals(n):
        level = np.linspace(-1, 1, n, dtype=np.float32)
        image = level[:, None, None, None] * np.ones((2, 3, 1), np.float32)
        return {"image": image} | ({"label": np.arange(n) % 3} if labelled else {})

    def encode(params, batch):
        mu = np.zeros((len(batch["image"]), 12), np.float32)
        mu[:, 7] = batch["image"][:, 0, 0, 0]
        return mu, np.zeros_like(mu)

    asked = []

    def draw(n, cond, temperature=None):
        assert ("label" in cond) == labelled
        if "z" in cond:
            asked.append(cond)
            return shade(cond["z"][:, 7:])
        assert temperature == 0.0
        return cond["image"]

    pictures = picture_encodings(Model({}, {}, draw), encode, originals)
    pairs = pictures["reconstructions"][2::4, 2::5, 0]
    assert_array_equal(pairs[:, ::2], pairs[:, 1::2])
    assert pairs.shape == (10, 10) and len(np.unique(pairs)) == 50
    rows = pictures["interpolation"][2::4, 2::5, 0]
    expected = np.rint((np.linspace(-1, 1, 50)[:16] + 1) * 127.5)
    assert_allclose(rows[:, 0], expected[:8], atol=1)
    assert_allclose(rows[:, -1], expected[8:], atol=1)
    assert pictures["traverse"].shape == (10 * 4 + 2, 7 * 5 + 2, 3)
    # The dimension that says something comes first.
    assert np.ptp(pictures["traverse"][2::4, 2::5, 0].astype(int), axis=1).tolist() == [255] + 9 * [
        0
    ]
    if labelled:
        assert_array_equal(asked[0]["label"], np.repeat(np.arange(8) % 3, 10))
        assert_array_equal(asked[1]["label"], 70 * [0])

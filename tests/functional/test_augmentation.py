import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import example_keys, fold
from aigc_jax.functional.augmentation import (
    brightness,
    chain_augmentations,
    color,
    contrast,
    cutout,
    diff_augment,
    saturation,
    translation,
)

B, H, W, C = 128, 16, 24, 3
X = np.random.default_rng(0).uniform(-1, 1, (B, H, W, C)).astype(np.float32)
KEYS = example_keys(jax.random.key(0), jnp.arange(B))
EACH = [brightness, saturation, contrast, translation, cutout, diff_augment]
LINEAR = EACH[1:5]
PIXELS = (1, 2, 3)


def spread(u, low, high):
    """Hold draws to a uniform law: its range, mean and variance, to five standard errors."""
    u = np.asarray(u, np.float64)
    assert low <= u.min() and u.max() <= high
    n, variance = u.size, (high - low) ** 2 / 12
    assert abs(u.mean() - (low + high) / 2) < 5 * np.sqrt(variance / n)
    # A uniform law's kurtosis is 9/5: its sample variance errs by σ² √(0.8/n).
    assert abs(u.var() - variance) < 5 * variance * np.sqrt(0.8 / n)


def test_brightness_adds_one_number_to_each_image():
    u = np.asarray(brightness(X, KEYS)) - X
    np.testing.assert_allclose(u, np.broadcast_to(u[:, :1, :1, :1], u.shape), atol=3e-7)
    spread(u[:, 0, 0, 0], -0.5, 0.5)


def test_saturation_scales_channels_about_their_mean():
    y = np.asarray(saturation(X, KEYS))
    mean = X.mean(3, keepdims=True)
    np.testing.assert_allclose(y.mean(3, keepdims=True), mean, atol=1e-6)
    # The factor, by least squares; then all of the image is that factor times what it was.
    u = ((y - mean) * (X - mean)).sum(PIXELS) / np.square(X - mean).sum(PIXELS)
    np.testing.assert_allclose(y, mean + u[:, None, None, None] * (X - mean), atol=2e-6)
    spread(u, 0, 2)


def test_saturation_leaves_grey_images():
    np.testing.assert_array_equal(saturation(X[..., :1], KEYS), X[..., :1])


def test_contrast_scales_images_about_their_mean():
    y = np.asarray(contrast(X, KEYS))
    mean = X.mean(PIXELS, keepdims=True)
    np.testing.assert_allclose(y.mean(PIXELS, keepdims=True), mean, atol=1e-6)
    u = ((y - mean) * (X - mean)).sum(PIXELS) / np.square(X - mean).sum(PIXELS)
    np.testing.assert_allclose(y, mean + u[:, None, None, None] * (X - mean), atol=2e-6)
    spread(u, 0.5, 1.5)


def test_translation_shifts_by_up_to_an_eighth_and_fills_up_with_0():
    y, seen = np.asarray(translation(X, KEYS)), set()
    for before, after in zip(X, y, strict=True):
        # No two pixels are alike: where one that cannot drop out went tells the shift.
        at = np.argwhere((after == before[H // 2, W // 2]).all(-1))
        s, t = map(int, at[0] - (H // 2, W // 2))
        wide = np.pad(before, ((2, 2), (3, 3), (0, 0)))
        np.testing.assert_array_equal(after, wide[2 - s : 2 - s + H, 3 - t : 3 - t + W])
        seen.add((s, t))
    # H/8 = 2 and W/8 = 3: each of the 5 × 7 shifts, the furthest included, in 128 draws.
    assert {s for s, _ in seen} == set(range(-2, 3)) and {t for _, t in seen} == set(range(-3, 4))
    assert len(seen) > 30


def test_translation_of_one_pixel_keeps_its_value_or_drops_it():
    x = np.zeros((B, 8, 8, 1), np.float32)
    x[:, 0, 4] = 0.7
    y = np.asarray(translation(x, KEYS))[..., 0]
    landed = [tuple(map(int, at)) for image in y for at in np.argwhere(image)]
    assert set(landed) == {(i, j) for i in (0, 1) for j in (3, 4, 5)}
    assert set(np.unique(y)) == {np.float32(0), np.float32(0.7)}
    # A third of the shifts are up, and out of the image.
    assert abs(len(landed) / B - 2 / 3) < 5 * np.sqrt(2 / 9 / B)


@pytest.mark.parametrize(("h", "w"), [(16, 24), (14, 10)])  # halves even and odd
def test_cutout_zeroes_a_window_of_half_the_sides(h, w):
    x = np.ones((B, h, w, 2), np.float32)
    y = np.asarray(cutout(x, KEYS))
    assert (y[..., 0] == y[..., 1]).all()
    whole = 0
    for image in y[..., 0]:
        zero = image == 0
        extents = [np.flatnonzero(zero.any(1 - axis)) for axis in (0, 1)]
        # What is zero is a rectangle, and nothing else changed.
        assert zero.sum() == extents[0].size * extents[1].size and set(np.unique(image)) == {0, 1}
        for extent, side in zip(extents, (h, w), strict=True):
            assert (np.diff(extent) == 1).all()
            half, within = side // 2, extent[0] > 0 and extent[-1] < side - 1
            # Over a border at most half of it is lost.
            assert extent.size == half if within else half / 2 <= extent.size <= half
        whole += extents[0].size == h // 2
    # Of the h + 1 centres between pixels, or h on them, h − h//2 + 1 keep all of its rows.
    p = (h - h // 2 + 1) / (h + 1 - h // 2 % 2)
    assert abs(whole / B - p) < 5 * np.sqrt(p * (1 - p) / B)


@pytest.mark.parametrize("augment", EACH)
def test_an_example_depends_on_its_key_alone(augment):
    run = jax.jit(augment)
    whole = run(X, KEYS)
    pick = np.array([7, 3, 100])
    np.testing.assert_allclose(run(X[pick], KEYS[pick]), whole[pick], atol=1e-6)
    # One image under many keys becomes many.
    same = np.asarray(run(np.broadcast_to(X[:1], X.shape), KEYS))
    assert len(np.unique(same.reshape(B, -1), axis=0)) > 30


@pytest.mark.parametrize("augment", EACH)
def test_vmap_over_batches_is_each_batchs(augment):
    x, keys = X[:6].reshape(2, 3, H, W, C), KEYS[:6].reshape(2, 3)
    together = jax.vmap(augment)(x, keys).reshape(6, H, W, C)
    np.testing.assert_allclose(together, augment(X[:6], KEYS[:6]), atol=1e-6)


@pytest.mark.parametrize("augment", LINEAR)
def test_gradients_are_those_of_a_linear_map(augment):
    # ⟨v, A x⟩ has the gradient Aᵀv: its product with any x' is ⟨v, A x'⟩.
    rng = np.random.default_rng(1)
    v, other = (rng.normal(size=(8, H, W, C)).astype(np.float32) for _ in range(2))
    keys = KEYS[:8]
    slope = jax.grad(lambda x: (v * augment(x, keys)).sum())(jnp.asarray(X[:8]))
    each = (slope * other).sum(PIXELS)
    np.testing.assert_allclose(each, (v * augment(other, keys)).sum(PIXELS), rtol=1e-4, atol=1e-3)


def test_gradients_of_a_sum():
    slope = lambda augment: jax.grad(lambda x: augment(x, KEYS).sum())(jnp.asarray(X))
    # What keeps a mean keeps the sum, and an added constant adds no slope.
    for keeps in (brightness, saturation, contrast, color):
        np.testing.assert_allclose(slope(keeps), np.ones_like(X), atol=1e-5)
    np.testing.assert_array_equal(slope(cutout), cutout(np.ones_like(X), KEYS))
    # A pixel counts once, unless it is shifted out.
    shifted = np.asarray(translation(np.ones_like(X), KEYS)).sum(PIXELS)
    of_pixels = np.asarray(slope(translation))
    assert set(np.unique(of_pixels)) == {0, 1}
    np.testing.assert_array_equal(of_pixels.sum(PIXELS), shifted)


def test_a_chain_gives_each_its_own_keys():
    chained = chain_augmentations(brightness, brightness)(X, KEYS)
    by_hand = brightness(brightness(X, fold(KEYS, 0)), fold(KEYS, 1))
    np.testing.assert_array_equal(chained, by_hand)
    first, second = (np.asarray(brightness(X, fold(KEYS, i)) - X)[:, 0, 0, 0] for i in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(B)
    np.testing.assert_array_equal(chain_augmentations()(X, KEYS), X)


def test_the_policy_is_color_then_translation_then_cutout():
    by_hand = color(X, fold(KEYS, 0))
    by_hand = cutout(translation(by_hand, fold(KEYS, 1)), fold(KEYS, 2))
    np.testing.assert_array_equal(diff_augment(X, KEYS), by_hand)


@pytest.mark.parametrize("augment", EACH)
def test_types_are_kept(augment):
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.bfloat16)
    y = jax.eval_shape(augment, x, KEYS[:2])
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("augment", EACH)
def test_shapes_are_held(augment):
    with pytest.raises(AssertionError):
        augment(X[0], KEYS)
    with pytest.raises(AssertionError):
        augment(X, KEYS[0])
    with pytest.raises(AssertionError):
        augment(X[:1], KEYS)
    chex.assert_equal_shape([augment(X[:1, :1, :1], KEYS[:1]), X[:1, :1, :1]])  # of one pixel

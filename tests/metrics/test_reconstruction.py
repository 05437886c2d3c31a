import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from aigc_jax.core.types import Model
from aigc_jax.data.batches import whole
from aigc_jax.data.sources import arrays
from aigc_jax.data.transforms import normalise
from aigc_jax.metrics.judge import Judge
from aigc_jax.metrics.pictures import image_grid
from aigc_jax.metrics.reconstruction import (
    evaluate_reconstructions,
    judge_reconstructions,
    picture_reconstructions,
    psnr,
    reconstructions,
    ssim,
)
from aigc_jax.metrics.unconditional import judge_data

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (3, 14, 12, 2)).astype(np.float32)


def flat(*values):
    return np.float32(values)[:, None, None, None] * np.ones((1, 12, 12, 1), np.float32)


# PSNR


def test_psnr_is_of_each_images_own_error():
    # 2 apart is 0 dB; 0.2, of which 100 squares make 4, is 20 dB; nothing is infinitely good.
    ratios = psnr(flat(1, 0.1, 0.5), flat(-1, -0.1, 0.5))
    np.testing.assert_allclose(ratios, [0, 20, np.inf], atol=1e-5)
    np.testing.assert_allclose(psnr(X, X + 0.02), 40, atol=1e-4)


def test_psnr_is_of_levels_too():
    levels = np.arange(250, dtype=np.uint8).reshape(1, 10, 25, 1)
    np.testing.assert_allclose(psnr(levels + 5, levels, peak=255), 20 * np.log10(51), rtol=1e-6)
    np.testing.assert_allclose(psnr(levels, levels + 5, peak=255), 20 * np.log10(51), rtol=1e-6)


# SSIM


def direct(x, y, peak=2.0):
    """Wang et al. 2004, eqs. 13 to 16, of an image of one channel, by SciPy's Gaussian of 11×11."""

    def average(image):
        return gaussian_filter(image, 1.5, truncate=3.5, mode="constant")[5:-5, 5:-5]

    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = average(x), average(y)
    sxx, syy, sxy = average(x * x) - mx**2, average(y * y) - my**2, average(x * y) - mx * my
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    top = (2 * mx * my + c1) * (2 * sxy + c2)
    return np.mean(top / ((mx**2 + my**2 + c1) * (sxx + syy + c2)))


def test_ssim_is_that_of_scipys_windows():
    y = 0.7 * X + 0.2 * RNG.normal(size=X.shape) + 0.1
    expected = [np.mean([direct(a[..., i], b[..., i]) for i in range(2)]) for a, b in zip(X, y)]
    np.testing.assert_allclose(ssim(X, y), expected, rtol=1e-6)
    levels = (127.5 * (X + 1)).astype(np.uint8)
    expected = [
        np.mean([direct(a[..., i], b[..., i], 255) for i in range(2)])
        for a, b in zip(levels, levels[::-1])
    ]
    np.testing.assert_allclose(ssim(levels, levels[::-1], peak=255), expected, rtol=1e-6)


def test_ssim_has_its_closed_forms():
    np.testing.assert_allclose(ssim(X, X), 1)
    # Without structure, only the means are compared: (2ab + C₁)/(a² + b² + C₁).
    a, b, c = 0.4, -0.2, 0.02**2
    value = (2 * a * b + c) / (a * a + b * b + c)
    np.testing.assert_allclose(ssim(flat(a, 0.3), flat(b, 0.3)), [value, 1], rtol=1e-5)
    # The negative of what averages 0 in every window is its opposite but for C₂.
    wave = np.tile(np.float32([[1, -1], [-1, 1]]), (8, 8)).reshape(1, 16, 16, 1)
    assert ssim(wave, -wave)[0] < -0.99


@pytest.mark.parametrize("of", [psnr, ssim])
def test_images_of_another_shape_are_refused(of):
    with pytest.raises(ValueError, match=r"shape \(3, 14, 12, 2\) cannot be held against \(2, 14"):
        of(X, X[:2])


@pytest.mark.parametrize("x", [np.zeros((1, 10, 12, 1)), np.zeros((1, 12, 10, 1)), np.zeros(12)])
def test_ssim_needs_images_as_large_as_its_window(x):
    with pytest.raises(ValueError, match="h and w >= 11"):
        ssim(x, x)


# Of a model

LEVELS = np.array([-0.5, 0.5])


def split(n):
    label = np.arange(n) % 2
    noise = RNG.normal(0, 0.05, (n, 12, 12, 1))
    return {
        "image": np.round(127.5 * (LEVELS[label][:, None, None, None] + noise + 1)).astype(
            np.uint8
        ),
        "label": label,
    }


DATA = arrays(split(60), split(40), classes=("dark", "light"))
TEST = whole(DATA.test, normalise)
JUDGE = Judge(
    lambda x: x[:, :2, :2].reshape(len(x), -1), lambda x: (x.mean((1, 2, 3)) > 0) * 1, "grey", 1.0
)


def draw(n, cond, *, temperature, seed=0):
    """Add 0.1 and what is given as temperature, to images with their labels."""
    np.testing.assert_array_equal(cond["label"], TEST["label"][:n])
    return cond["image"] + 0.1 + temperature


MODEL = Model({}, {}, draw)


def test_reconstructions_are_of_the_first_test_images_at_8_bit_levels():
    original, drawn = reconstructions(MODEL, DATA, 7)
    np.testing.assert_array_equal(original, TEST["image"][:7])
    np.testing.assert_allclose(drawn, original + 13 / 127.5, atol=1e-6)  # 12.75 levels
    assert len(reconstructions(MODEL, DATA)[0]) == len(reconstructions(MODEL, DATA, 99)[0]) == 40
    warm = reconstructions(MODEL, DATA, 7, temperature=9.0)[1]
    np.testing.assert_array_equal(warm, np.ones_like(warm))


def test_an_evaluation_averages_over_images():
    scores = evaluate_reconstructions(MODEL, DATA, n=10)
    assert list(scores) == ["psnr/test-10", "ssim/test-10"]
    assert scores["psnr/test-10"] == pytest.approx(20 * np.log10(2 * 127.5 / 13), abs=1e-4)
    original, drawn = reconstructions(MODEL, DATA, 10)
    assert scores["ssim/test-10"] == pytest.approx(ssim(original, drawn).mean())


def test_reconstructions_are_judged_and_said_to_be_such():
    real = judge_data(JUDGE, DATA, n=20)
    copy = Model({}, {}, lambda n, cond, **_: cond["image"])
    same = judge_reconstructions(copy, JUDGE, real, data=DATA, ema=True)
    worse = judge_reconstructions(MODEL, JUDGE, real, data=DATA, ema=True)
    name = "reconstruction_fcd_grey/test-20-ema"
    assert 0 <= same[name] < 0.02 < worse[name]
    assert all(key.startswith("reconstruction_") for key in same)
    assert same["reconstruction_classes_grey/20-ema"] == 2
    with pytest.raises(ValueError, match="n=41 must be at most the 40 images to reconstruct"):
        judge_reconstructions(copy, JUDGE, real._replace(n=41), data=DATA, ema=True)


def test_a_picture_has_originals_above_what_became_of_them():
    picture = picture_reconstructions(MODEL, DATA, n=7, columns=3)["reconstructions"]
    original, drawn = reconstructions(MODEL, DATA, 6)
    rows = [original[:3], drawn[:3], original[3:], drawn[3:]]
    np.testing.assert_array_equal(picture, image_grid(np.concatenate(rows), 3))
    few = picture_reconstructions(MODEL, DATA, n=2)["reconstructions"]
    np.testing.assert_array_equal(few, image_grid(np.concatenate([original[:2], drawn[:2]]), 2))

import jax
import numpy as np
import pytest

from aigc_jax.data.edges import edges
from aigc_jax.data.transforms import chain, normalise

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (3, 9, 12, 3), np.uint8)


def step(left, right, size=8):
    """Two halves of one colour each, (1, size, size, c)."""
    image = np.empty((1, size, size, len(left)), np.uint8)
    image[:, :, : size // 2], image[:, :, size // 2 :] = left, right
    return image


def drawing(image, **options):
    return edges({"image": image}, **options)["source"][..., 0]


# The slope of a step between two pixels is half of it on either; the first of them is the line.
@pytest.mark.parametrize(
    ("left", "right", "slope"),
    [
        ([0], [255], 127.5),
        ([48], [0], 24),
        ([100], [122], 11),
        ([100], [116], 8),
        # Each channel's step counts alike, wherever it leads: these are of one brightness.
        ([0, 32, 7], [32, 0, 7], np.hypot(16, 16)),
        ([9, 9, 9], [33, 33, 33], 12 * np.sqrt(3)),
    ],
)
def test_a_step_is_a_line_of_one_pixel_as_black_as_it_is_steep(left, right, slope):
    expected = np.ones((1, 8, 8), np.float32)
    expected[:, :, 3] = 1 - 2 * np.clip((slope - 8) / (40 - 8), 0, 1)
    image = step(left, right)
    np.testing.assert_allclose(drawing(image), expected, atol=1e-5)
    np.testing.assert_allclose(drawing(image.swapaxes(1, 2)), expected.swapaxes(1, 2), atol=1e-5)
    expected[:, :, 3] = 1 - 2 * np.clip((slope - 5) / (20 - 5), 0, 1)
    np.testing.assert_allclose(drawing(image, low=5, high=20), expected, atol=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_diagonal_step_is_a_diagonal_line(mirrored):
    y, x = np.mgrid[:12, :12]
    image = np.where(y + x > 11, 255, 0).astype(np.uint8)[None, :, :, None]
    # It lies between two diagonals, whose pixels are alike and meet in corners alone: both are it.
    line = (y + x == 11) | (y + x == 12)
    if mirrored:
        image, line = image[:, :, ::-1], line[:, ::-1]
    inside = np.s_[1:-1, 1:-1]  # the border knows only half of what is around it
    np.testing.assert_array_equal((drawing(image)[0] == -1)[inside], line[inside])
    assert set(np.unique(drawing(image)[0][inside])) == {-1, 1}


def test_a_disc_is_a_thin_circle():
    y, x = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(y, x)
    # Anti-aliased, as pictures are.
    image = np.round(255 * np.clip(radius - 19.5, 0, 1)).astype(np.uint8)[None, :, :, None]
    black = drawing(image)[0] < 0
    assert np.abs(radius[black] - 20).max() < 1.5
    # 4-connected, a circle has 8 r pixels; of diagonal steps where it can, 4 √2 r.
    assert 4 * np.sqrt(2) * 20 * 0.9 < black.sum() < 8 * 20 * 1.1
    angle = np.sort(np.arctan2(y, x)[black])
    assert np.diff(angle).max() < 0.2  # no gaps


def test_what_is_of_one_colour_is_white_and_borders_are_no_edges():
    assert (drawing(np.full((2, 5, 6, 3), 77, np.uint8)) == 1).all()


def test_an_example_is_drawn_by_itself_and_the_rest_passes():
    given = {"image": NOISE, "label": np.arange(3)}
    result = edges(given)
    assert set(given) == {"image", "label"} and set(result) == {"image", "label", "source"}
    assert result["source"].shape == (3, 9, 12, 1) and result["source"].dtype == np.float32
    np.testing.assert_array_equal(result["image"], NOISE)
    assert -1 <= result["source"].min() < result["source"].max() == 1
    np.testing.assert_array_equal(edges({"image": NOISE[1:2]})["source"], result["source"][1:2])


def test_in_jax_it_is_what_it_is_on_the_host():
    # Steps and flat places too, where neighbours are equally steep.
    blocks = RNG.integers(0, 256, (5, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    for image in (NOISE, blocks):
        transform = chain(edges, normalise)
        device = jax.jit(transform)({"image": image}, None)
        host = transform({"image": image}, None)
        for name in ("image", "source"):
            np.testing.assert_allclose(device[name], host[name], atol=1e-6)


def test_what_is_no_image_of_levels_is_refused():
    with pytest.raises(ValueError, match=r"^edges are of uint8 images, not float32; normalise aft"):
        edges(normalise({"image": NOISE}))
    for low, high in ((-1, 5), (5, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"^low={low} and high={high} must be 0 <= low < high"):
            drawing(NOISE, low=low, high=high)

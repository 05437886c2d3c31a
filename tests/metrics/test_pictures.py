import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from aigc_jax.data.transforms import normalise
from aigc_jax.metrics.pictures import image_grid, neighbour_grid, quantise, to_uint8


def flat(*levels, size=2, channels=1):
    """Images of one level each."""
    return np.array(levels, np.uint8)[:, None, None, None] * np.ones(
        (1, size, size, channels), np.uint8
    )


def test_every_level_survives_the_way_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8)
    assert_array_equal(to_uint8(levels / 127.5 - 1), levels)
    assert_array_equal(to_uint8(normalise({"image": levels})["image"]), levels)
    assert_array_equal(to_uint8(np.array([100.4, 100.6]) / 127.5 - 1), [100, 101])
    assert_array_equal(to_uint8(levels), levels)
    assert_array_equal(to_uint8([-9.0, 9.0]), [0, 255])


def test_quantising_moves_a_pixel_half_a_level_at_most_and_only_once():
    x = np.random.default_rng(0).uniform(-1, 1, size=1000)
    q = quantise(x)
    assert q.dtype == np.float32
    assert np.abs(q - x).max() <= 1 / 255 + 1e-6
    assert len(np.unique(q)) <= 256
    assert_array_equal(quantise(q), q)
    assert_allclose(quantise([-1.5, 1.5]), [-1, 1])


def test_a_grid_places_images_row_by_row_within_its_padding():
    grid = image_grid(flat(10, 20, 30, size=2), 2, pad=1)
    assert grid.shape == (7, 7, 3)
    assert grid.dtype == np.uint8
    rows = [
        [255, 255, 255, 255, 255, 255, 255],
        [255, 10, 10, 255, 20, 20, 255],
        [255, 10, 10, 255, 20, 20, 255],
        [255, 255, 255, 255, 255, 255, 255],
        [255, 30, 30, 255, 255, 255, 255],
        [255, 30, 30, 255, 255, 255, 255],
        [255, 255, 255, 255, 255, 255, 255],
    ]
    for channel in range(3):
        assert_array_equal(grid[..., channel], rows)


def test_a_grid_keeps_colours_and_scales_pixels_to_squares():
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert_array_equal(image_grid(image, pad=0), image[0])
    large = image_grid(image, pad=0, scale=3)
    assert large.shape == (6, 6, 3)
    assert_array_equal(large[::3, ::3], image[0])
    assert_array_equal(large[2::3, 1::3], image[0])
    assert_array_equal(image_grid(image / 127.5 - 1, pad=0), image[0])


def test_a_grid_is_about_square_unless_told():
    assert image_grid(flat(*range(10), size=1), pad=0).shape == (3, 4, 3)
    assert image_grid(flat(*range(9), size=1), pad=0).shape == (3, 3, 3)
    assert image_grid(flat(1, 2, size=1), 5, pad=0, background=7)[0, :, 0].tolist() == [
        1,
        2,
        7,
        7,
        7,
    ]


def test_each_sample_stands_beside_its_neighbours():
    samples, training = flat(1, 2, size=1), flat(10, 20, 30, size=1)
    grid = neighbour_grid(samples, training, [[2, 0], [1, 1]], pad=1)
    _ = 255
    assert_array_equal(
        grid[..., 0],
        [
            [_, _, _, _, _, _, _, _],
            [_, 1, _, _, 30, _, 10, _],
            [_, _, _, _, _, _, _, _],
            [_, 2, _, _, 20, _, 20, _],
            [_, _, _, _, _, _, _, _],
        ],
    )
    assert_array_equal(
        neighbour_grid(samples, training, np.array([2, 0])),
        neighbour_grid(samples, training, np.array([[2], [0]])),
    )


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"^images are int64; they must be uint8, or floats"):
        to_uint8([1, 2])
    with pytest.raises(ValueError, match=r"^images hold NaN or infinity in 1 of 2 values$"):
        to_uint8([np.nan, 0.0])
    for shape in [(2, 4, 4), (2, 4, 4, 2), (0, 4, 4, 1)]:
        with pytest.raises(ValueError, match=r"^images has shape"):
            image_grid(np.zeros(shape, np.uint8))
    for option in ({"columns": 0}, {"pad": -1}, {"scale": 0}):
        name, value = next(iter(option.items()))
        with pytest.raises(ValueError, match=f"^{name}={value} must be at least"):
            image_grid(flat(1), **option)
    with pytest.raises(ValueError, match=r"^index has 1 rows; there are 2 samples$"):
        neighbour_grid(flat(1, 2), flat(3), [[0]])

import jax
import numpy as np
import pytest

from aigc_jax.data.transforms import (
    Address,
    Addressed,
    binarise,
    chain,
    flip,
    normalise,
    over_white,
    pad,
    random_bits,
    resize,
)

LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


def test_normalise_is_x_over_127_and_a_half_minus_1():
    image = normalise({"image": LEVELS, "label": np.array([3])})["image"]
    assert image.dtype == np.float32
    exact = LEVELS.astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(image, exact, atol=6e-8)
    assert image.min() == -1 and image.max() == 1


def test_pad_centres():
    image = np.ones((2, 28, 27, 3), np.uint8)
    padded = pad(32, value=7)({"image": image}, Address(0, np.arange(2)))["image"]
    assert padded.shape == (2, 32, 32, 3) and padded.dtype == np.uint8
    assert (padded[:, 2:30, 2:29] == 1).all()
    padded[:, 2:30, 2:29] = 7
    assert (padded == 7).all()
    with pytest.raises(ValueError, match="pad size=16 must be at least"):
        pad(16)({"image": image}, Address(0, np.arange(2)))


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_keeps_what_is_constant_and_the_order_of_a_ramp(channels):
    constant = np.full((2, 8, 8, channels), 77, np.uint8)
    address = Address(0, np.arange(2))
    assert (resize(5)({"image": constant}, address)["image"] == 77).all()
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[:, None], (2, 32, 32))
    ramp = np.repeat(ramp[..., None], channels, -1)
    small = resize(16)({"image": ramp}, address)["image"]
    assert small.shape == (2, 16, 16, channels)
    # Away from the border, halving a ramp gives the mean of each pair of levels.
    expected = np.arange(4, 256, 16)
    np.testing.assert_allclose(small[0, 3:-3, 5, 0], expected[3:-3], atol=1)


def test_over_white_is_the_closed_form():
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (2, 5, 5, 4), np.uint8)
    rgb = over_white({"image": rgba})["image"]
    alpha = rgba[..., 3:] / 255
    np.testing.assert_allclose(rgb, alpha * rgba[..., :3] + (1 - alpha) * 255, atol=0.51)
    np.testing.assert_array_equal(over_white({"image": rgb})["image"], rgb)


def test_flip_mirrors_half_of_the_images_and_nothing_else():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4096, 2, 3, 1), np.uint8)
    before = image.copy()
    flipped = flip({"image": image}, Address(0, np.arange(4096)))["image"]
    np.testing.assert_array_equal(image, before)  # sources in memory are not written to
    mirrored = (flipped == image[:, :, ::-1]).all((1, 2, 3))
    same = (flipped == image).all((1, 2, 3))
    assert (mirrored | same).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / 64  # four standard deviations


def test_flip_does_not_depend_on_how_a_batch_is_split():
    image = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), np.uint8)
    position = np.arange(1000, 1064)
    whole = flip({"image": image}, Address(5, position))["image"]
    parts = [
        flip({"image": image[i : i + 16]}, Address(5, position[i : i + 16]))["image"]
        for i in range(0, 64, 16)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_binarised_pixels_are_white_as_often_as_their_level_says():
    n = 4096
    image = np.broadcast_to(LEVELS, (n, 16, 16, 1))
    drawn = binarise({"image": image}, Address(0, np.arange(n)))["image"]
    assert drawn.dtype == np.float32 and set(np.unique(drawn)) == {-1.0, 1.0}
    white, p = (drawn == 1).mean(0), LEVELS[0] / 255
    assert white[0, 0, 0] == 0 and white[-1, -1, 0] == 1  # black stays black, and white white
    deviation = np.sqrt(p * (1 - p) / n)
    assert (np.abs(white - p) <= 5 * deviation).all()
    # Pixels of an image, and images, are independent: these correlations scatter by 1/√n.
    grey = np.delete(drawn.reshape(n, 256), [0, 255], axis=1)
    of_pixels = np.corrcoef(grey.T) - np.eye(254)
    assert np.abs(of_pixels).max() < 6 / np.sqrt(n)
    noise = (grey - grey.mean(0)) / grey.std(0)
    assert abs((noise[1:] * noise[:-1]).mean()) < 5 / np.sqrt(noise[1:].size)


def test_binarising_depends_on_the_address_alone():
    image = np.full((64, 4, 4, 3), 128, np.uint8)
    position = np.arange(1000, 1064)
    whole = binarise({"image": image}, Address(5, position))["image"]
    half = binarise({"image": image[:32]}, Address(5, position[32:]))["image"]
    np.testing.assert_array_equal(whole[32:], half)
    for other in (Address(6, position), Address(5, position + 64)):  # another seed, another epoch
        agreement = (binarise({"image": image}, other)["image"] == whole).mean()
        assert abs(agreement - 0.5) < 5 * 0.5 / np.sqrt(image.size)


def test_the_finaliser_is_murmurs():
    # The hashes of no bytes under the seeds 1 and 2³² − 1, which are the finaliser alone.
    from aigc_jax.data.transforms import _mix

    assert _mix(np.array([0, 1, 2**32 - 1], np.uint32)).tolist() == [0, 0x514E28B7, 0x81F16F39]


def test_random_bits_differ_by_seed_name_and_position():
    position = np.arange(20_000)
    one = random_bits(Address(0, position), "flip")
    assert len(np.unique(one)) == 20_000
    for other in (
        random_bits(Address(1, position), "flip"),
        random_bits(Address(0, position), "crop"),
    ):
        assert not np.isin(one, other).any()
        agreement = np.mean((one >> np.uint64(63)) == (other >> np.uint64(63)))
        assert abs(agreement - 0.5) < 4 * 0.5 / np.sqrt(20_000)
    # Each of the 64 bits is fair, and the last place of the position reaches the first bit.
    bits = (one[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)


def test_an_address_draws_the_upper_half_of_its_bits():
    address = Address(3, np.arange(5))
    bits = address.bits("flip")
    assert bits.dtype == np.uint32
    np.testing.assert_array_equal(bits, random_bits(address, "flip") // 2**32)


def test_transforms_in_jax_are_those_on_the_host():
    rgba = np.random.default_rng(0).integers(0, 256, (64, 5, 6, 4), np.uint8)
    address = Address(3, np.arange(64))
    drawn = Addressed(np.arange(64, dtype=np.int32), {"flip": address.bits("flip")})
    levels = chain(flip, over_white, pad(8, value=7))
    device = jax.jit(levels)({"image": rgba}, drawn)["image"]
    assert device.dtype == np.uint8
    np.testing.assert_array_equal(device, levels({"image": rgba}, address)["image"])
    drawn = Addressed(drawn.rows, {"binarise": address.bits("binarise")})
    device = jax.jit(binarise)({"image": rgba}, drawn)["image"]
    assert device.dtype == np.float32
    np.testing.assert_array_equal(device, binarise({"image": rgba}, address)["image"])
    device = jax.jit(normalise)({"image": LEVELS})["image"]
    np.testing.assert_allclose(device, normalise({"image": LEVELS})["image"], rtol=0, atol=1.2e-7)


def test_splitmix64_gives_its_published_stream():
    # The first outputs that its reference implementation prints for the seed 1234567.
    from aigc_jax.data.transforms import _splitmix64

    # It adds a constant to the seed at each output; ours multiplies a count by that constant.
    first = 1234567 * pow(0x9E3779B97F4A7C15, -1, 2**64)
    count = np.array([(first + i) % 2**64 for i in range(1, 6)], np.uint64)
    assert _splitmix64(count).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_chain_applies_from_left_to_right():
    examples = {"image": np.zeros((1, 2, 2, 1), np.uint8)}
    image = chain(pad(4, value=255), normalise)(examples, Address(0, np.arange(1)))["image"]
    assert image[0, 0, 0, 0] == 1 and image[0, 1, 1, 0] == -1

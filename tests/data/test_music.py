import jax
import numpy as np
import pytest

from aigc_jax.data import music
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import arrays
from aigc_jax.data.transforms import Address, Addressed


def test_segments_start_a_hop_apart_and_the_rest_is_dropped():
    song = np.arange(20).reshape(10, 2)
    found = music.segments(song, 4, 3)
    np.testing.assert_array_equal(found, np.stack([song[0:4], song[3:7], song[6:10]]))
    assert music.segments(song, 10, 3).shape == (1, 10, 2)
    assert music.segments(song, 11, 3).shape == (0, 11, 2)


@pytest.mark.parametrize(("frames", "hop", "name"), [(0, 1, "frames"), (4, 0, "hop")])
def test_segments_of_nothing_are_refused(frames, hop, name):
    with pytest.raises(ValueError, match=f"^{name}=0 must be at least 1$"):
        music.segments(np.zeros((9, 4)), frames, hop)


def test_tokens_are_the_pitches_of_the_voices_and_silence():
    pitches = np.array([-1, *range(music.LOWEST, music.HIGHEST + 1)])
    tokens = music.to_tokens(pitches)
    np.testing.assert_array_equal(tokens, np.arange(music.VOCABULARY))
    np.testing.assert_array_equal(music.to_pitches(tokens), pitches)
    with pytest.raises(ValueError, match=r"^pitches \[-2, 82\] must be -1, or from 36 to 81$"):
        music.to_tokens([60, 82, -2])


def test_transposition_keeps_intervals_and_silence_and_takes_every_interval_alike():
    n = 12_000
    chord = np.zeros((n, 2, 4), np.int32)
    chord[:, :, :3] = 30, 25, 20
    moved = music.transpose({"pitches": chord}, Address(0, np.arange(n)))["pitches"]
    assert moved.dtype == np.int32 and not moved[..., 3].any()
    shift = (moved - chord)[..., :3]
    assert (shift == shift[:, :1, :1]).all()
    counts = np.bincount(shift[:, 0, 0] + 5, minlength=12)
    assert len(counts) == 12
    # Each of n/12 = 1000 expected; five standard deviations of that count are 151.
    assert abs(counts - 1000).max() < 151


@pytest.mark.parametrize(
    ("lowest", "highest", "shifts"),
    [(1, 40, range(0, 7)), (3, 46, range(-2, 1)), (1, 46, range(1)), (10, 45, range(-5, 2))],
)
def test_transposition_stays_in_the_vocabulary(lowest, highest, shifts):
    chord = np.full((500, 1, 4), lowest, np.int32)
    chord[..., 0] = highest
    moved = music.transpose({"pitches": chord}, Address(3, np.arange(500)))["pitches"]
    assert set(np.unique(moved - chord)) == set(shifts)


def test_transposition_leaves_silence_alone():
    silence = np.zeros((5, 3, 4), np.int32)
    moved = music.transpose({"pitches": silence}, Address(0, np.arange(5)))["pitches"]
    np.testing.assert_array_equal(moved, silence)


def test_transposition_depends_on_the_address_alone_and_is_the_same_on_a_device():
    rng = np.random.default_rng(0)
    song = {"pitches": rng.integers(0, 47, (6, 4, 4)).astype(np.int32)}
    song["pitches"][:, :, 1:] = 20
    data = arrays(song, song)
    stream = batches(data.train, 4, 0, transform=music.transpose, process=(0, 1))
    halves = [
        batches(data.train, 4, 0, transform=music.transpose, process=(i, 2))[5] for i in (0, 1)
    ]
    whole = stream[5]["pitches"]
    np.testing.assert_array_equal(np.concatenate([half["pitches"] for half in halves]), whole)
    held = stream.resident()
    gathered = jax.jit(held.gather)(held.columns, next(held.stream(5, 6)))["pitches"]
    np.testing.assert_array_equal(gathered, whole)
    address = Address(7, np.array([11]))
    drawn = Addressed(np.zeros(1), {"transpose": address.bits("transpose")})
    one = {"pitches": song["pitches"][:1]}
    np.testing.assert_array_equal(
        music.transpose(one, address)["pitches"], music.transpose(one, drawn)["pitches"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bars": 0}, "^bars=0 must be at least 1$"),
        ({"held_out": "train"}, "^held_out='train' must be 'test' or 'validation'$"),
    ],
)
def test_what_chorales_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        music.chorales("nowhere", **arguments)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="jsb_chorales"):
        music.chorales(str(tmp_path / "none"))


@pytest.mark.real_data
def test_chorales_are_segments_of_two_bars_in_order():
    data = music.chorales()
    train, test = (split.read(np.arange(len(split)))["pitches"] for split in data[:2])
    assert train.shape[1:] == test.shape[1:] == (32, 4) and train.dtype == np.int32
    assert (train.min(), train.max()) == (0, 46) and test.max() == 46
    # A bar apart, the second bar of a segment is the first of the next, but at a chorale's end.
    follows = (test[:-1, 16:] == test[1:, :16]).all((1, 2))
    assert (~follows).sum() == 76 and len(test) == 1088
    # Sopranos sing above altos, and so on, of nearly every frame.
    assert ((np.diff(test) <= 0).mean((0, 1)) > 0.98).all()
    more = music.chorales(hop=4, held_out="validation")
    assert len(more.train) == 12204 and len(more.test) not in (1088, 0)
    np.testing.assert_array_equal(more.train.read(np.arange(9))["pitches"][::4], train[:3])

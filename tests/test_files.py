import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from aigc_jax.files import read_png, write_gif, write_json, write_npz, write_png, write_shown


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_a_file_holds_the_image_and_replaces_the_one_before(tmp_path, shape):
    path = tmp_path / "made" / "on the way" / "x.png"
    write_png(path, np.zeros((1, 1), np.uint8))
    image = np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)
    write_png(path, image)
    with Image.open(path) as read:
        assert_array_equal(np.asarray(read).reshape(shape), image)
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


def test_a_write_that_fails_leaves_the_old_file_and_no_remains(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    write_png(path, np.full((2, 2), 9, np.uint8))
    before = path.read_bytes()

    def half(self, file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="No space left"):
        write_png(path, np.zeros((2, 2), np.uint8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_picture_is_refused(tmp_path):
    for bad in (np.zeros((2, 2)), np.zeros((2, 2, 2), np.uint8), np.zeros(2, np.uint8)):
        with pytest.raises(ValueError, match=r"^image is"):
            write_png(tmp_path / "x.png", bad)
    assert not list(tmp_path.iterdir())


def played(path):
    """The frames of a film, (t, h, w, 3), how long each is shown, and how often all; 0 is ever."""
    frames, durations = [], []
    with Image.open(path) as film:
        for i in range(film.n_frames):
            film.seek(i)
            durations.append(film.info["duration"])
            frames.append(np.asarray(film.convert("RGB")))
        return np.stack(frames), durations, film.info["loop"]


def moving(channels, levels=256):
    """A patch of noise that crosses a still background."""
    frames = np.full((5, 12, 20, channels), 7, np.uint8)
    patch = np.random.default_rng(0).integers(0, levels, (4, 4, channels), np.uint8)
    for i, frame in enumerate(frames):
        frame[2 * i : 2 * i + 4, 3 * i : 3 * i + 4] = patch
    return frames


@pytest.mark.parametrize("channels", [1, 3])
def test_a_film_holds_its_frames_and_loops(tmp_path, channels):
    frames = moving(channels)
    write_gif(tmp_path / "made" / "x.gif", frames)
    read, durations, loop = played(tmp_path / "made" / "x.gif")
    # Fewer colours than 256, so each comes back as it was.
    assert_array_equal(read, np.broadcast_to(frames, (5, 12, 20, 3)))
    assert durations == [80] * 5 and loop == 0
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["x.gif"]


def test_a_film_of_many_colours_holds_nearly_those(tmp_path):
    y, x = np.mgrid[:40, :40] * 6
    frames = np.stack([np.stack([x, y, (x + y) // 2 + i], -1) for i in range(3)]).astype(np.uint8)
    write_gif(tmp_path / "x.gif", frames)
    assert np.abs(played(tmp_path / "x.gif")[0].astype(int) - frames).mean() < 5


def test_a_frame_is_shown_as_long_as_was_asked_and_equal_ones_are_one(tmp_path):
    frames = np.array([1, 2, 2, 3], np.uint8)[:, None, None, None] * np.ones((2, 3, 1), np.uint8)
    write_gif(tmp_path / "x.gif", frames, milliseconds=[50, 100, 100, 1500])
    read, durations, _ = played(tmp_path / "x.gif")
    assert read[:, 0, 0, 0].tolist() == [1, 2, 3] and durations == [50, 200, 1500]
    write_gif(tmp_path / "x.gif", frames[:1])
    assert played(tmp_path / "x.gif")[0].shape == (1, 2, 3, 3)


def test_what_is_no_film_is_refused(tmp_path):
    film = np.zeros((2, 4, 4, 1), np.uint8)
    for bad in (film / 2, film[0], film.repeat(4, -1), film[:0]):
        with pytest.raises(ValueError, match=r"^frames"):
            write_gif(tmp_path / "x.gif", bad)
    with pytest.raises(ValueError, match=r"shape"):
        write_gif(tmp_path / "x.gif", film, milliseconds=[80] * 3)
    assert not list(tmp_path.iterdir())


def test_what_is_shown_has_the_format_of_its_type(tmp_path):
    film = moving(1)
    things = {"still": film[0], "film": film, "words": "to be", "a.song.mid": b"MThd"}
    paths = [write_shown(tmp_path / "made", name, what, "-7") for name, what in things.items()]
    assert [path.name for path in paths] == [
        "still-7.png",
        "film-7.gif",
        "words-7.txt",
        "a.song-7.mid",
    ]
    assert paths[2].read_text() == "to be\n" and paths[3].read_bytes() == b"MThd"
    assert_array_equal(read_png(paths[0])[..., :1], film[0])
    assert len(played(paths[1])[0]) == len(film)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_is_read_in_colour(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, channels), np.uint8)
    write_png(tmp_path / "x.png", image)
    assert_array_equal(read_png(tmp_path / "x.png"), np.broadcast_to(image[..., :3], (4, 5, 3)))


def test_a_damaged_picture_is_one_kind_of_error(tmp_path):
    path = tmp_path / "x.png"
    rng = np.random.default_rng(0)
    write_png(path, rng.integers(0, 256, (8, 8, 3), np.uint8))
    whole = path.read_bytes()
    for length in range(len(whole) - 20):  # those are of checksums and of its end
        path.write_bytes(whole[:length])
        with pytest.raises(OSError):
            read_png(path)
    for at in range(33):  # its signature and its header
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        with pytest.raises(OSError):
            read_png(path)


def test_documents_and_arrays_come_back(tmp_path):
    write_json(tmp_path / "a.json", {"name": "é", "n": [1, 2]})
    write_npz(tmp_path / "b.npz", {"x": np.arange(3)})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"name": "é", "n": [1, 2]}
    assert_array_equal(np.load(tmp_path / "b.npz")["x"], np.arange(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.npz"]

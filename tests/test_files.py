import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from aigc_jax.files import write_json, write_npz, write_png


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


def test_documents_and_arrays_come_back(tmp_path):
    write_json(tmp_path / "a.json", {"name": "é", "n": [1, 2]})
    write_npz(tmp_path / "b.npz", {"x": np.arange(3)})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"name": "é", "n": [1, 2]}
    assert_array_equal(np.load(tmp_path / "b.npz")["x"], np.arange(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.npz"]

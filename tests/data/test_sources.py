import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from aigc_jax.data import sources


def everything(source):
    return source.read(np.arange(len(source)))


def write(path, level, size=(12, 10), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level).save(path)


def test_digits_are_the_bundled_set_split_by_class():
    data = sources.digits()
    train, test = everything(data.train), everything(data.test)
    assert (len(data.train), len(data.test), data.name) == (1437, 360, "digits")
    assert data.classes == tuple("0123456789")
    assert train["image"].dtype == np.uint8 and train["label"].dtype == np.int32
    # Every level v/16 occurs, as round(255 v / 16) and as nothing else.
    assert set(np.unique(train["image"])) == {round(255 * v / 16) for v in range(17)}
    from sklearn.datasets import load_digits

    whole = load_digits()
    counts = np.bincount(train["label"]) + np.bincount(test["label"])
    np.testing.assert_array_equal(counts, np.bincount(whole.target))
    assert np.abs(np.bincount(test["label"]) - 36).max() <= 1
    images = np.concatenate([train["image"], test["image"]]).reshape(-1, 64)
    expected = np.round(whole.data * 255 / 16)
    np.testing.assert_array_equal(
        images[np.lexsort(images.T)], expected[np.lexsort(expected.T)].astype(np.uint8)
    )


def test_digits_do_not_change_from_call_to_call():
    one, two = everything(sources.digits().test), everything(sources.digits().test)
    np.testing.assert_array_equal(one["image"], two["image"])
    assert one["label"][:8].tolist() == [7, 6, 3, 7, 7, 3, 2, 8]


def test_arrays_are_read_in_the_order_asked_and_stay_uint8_in_memory():
    image = np.arange(5 * 2 * 2 * 1, dtype=np.uint8).reshape(5, 2, 2, 1)
    data = sources.arrays({"image": image, "label": np.arange(5)}, {"image": image[:1]})
    read = data.train.read(np.array([4, 0, 4]))
    np.testing.assert_array_equal(read["image"], image[[4, 0, 4]])
    assert read["label"].tolist() == [4, 0, 4] and read["label"].dtype == np.int32
    assert data.train.columns["image"].dtype == np.uint8


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"image": np.zeros((2, 4, 4, 1))}, r"train\['image'\] must be \(n, h, w, c\) uint8"),
        ({"image": np.zeros((2, 4, 4), np.uint8)}, r"train\['image'\] must be \(n, h, w, c\)"),
        ({"image": np.zeros((2, 4, 4, 1), np.uint8), "label": np.zeros(3)}, "one leading length"),
        ({"label": np.zeros(0)}, "at least 1"),
        ({}, "at least 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(train, message):
    with pytest.raises(ValueError, match=message):
        sources.arrays(train, {"image": np.zeros((1, 4, 4, 1), np.uint8)})


def test_old_examples_are_replayed_evenly_among_the_new():
    new, old = (
        sources.Memory({"tokens": np.arange(n)[:, None] + at}) for n, at in ((90, 0), (1000, 5000))
    )
    source = sources.Replayed(new, old, share=0.25)
    assert len(source) == 120
    rows = source.read(np.arange(120))["tokens"][:, 0]
    assert rows[:90].tolist() == list(range(90))
    replayed = np.sort(rows[90:]) - 5000
    assert replayed[0] >= 0 and replayed[-1] < 1000
    assert np.diff(replayed).max() < 100 and len(set(replayed)) == 30


def test_kept_examples_are_decoded_once():
    asked = []

    def load(index):
        asked.extend(index.tolist())
        return {"image": (index[:, None, None, None] * np.ones((1, 2, 2, 1))).astype(np.uint8)}

    source = sources.Kept(10, load)
    for index in ([3, 1, 3], [1, 2], [2, 3], list(range(10))):
        read = source.read(np.array(index))["image"]
        np.testing.assert_array_equal(read[:, 0, 0, 0], index)
    assert sorted(asked) == list(range(10))


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_decoding_lays_transparency_over_white():
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    opaque = sources.decode(png(rgba), 3)
    # 51 is a fifth of 255: 0.2 rgb + 0.8 · 255.
    np.testing.assert_allclose(opaque[0], [[200, 100, 0], [255, 255, 255], [244, 224, 204]], atol=1)
    np.testing.assert_array_equal(sources.decode(png(rgba), 4), rgba)


def test_decoding_keeps_the_upper_byte_of_16_bit_grey():
    levels = np.array([[0, 256, 0x80FF, 0xFFFF]], np.uint16)
    assert sources.decode(png(levels), 1)[0, :, 0].tolist() == [0, 1, 0x80, 0xFF]


def test_decoding_scales_and_crops_the_centre():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 250  # the central square
    image = sources.decode(png(wide), 3, size=4)
    assert image.shape == (4, 4, 3)
    # The black sides are cut off; Lanczos lets a little of them in and overshoots a little.
    np.testing.assert_allclose(image, 250, atol=15)


def test_a_folder_has_a_class_per_subfolder(tmp_path):
    for name, level, count in (("cat", 10, 20), ("dog", 200, 10)):
        for i in range(count):
            write(tmp_path / name / f"{i}.png", level)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    data = sources.folder(tmp_path, size=6, channels=1, test_fraction=0.2)
    assert data.classes == ("cat", "dog") and data.name == tmp_path.name
    train, test = everything(data.train), everything(data.test)
    assert np.bincount(train["label"]).tolist() == [16, 8]
    assert np.bincount(test["label"]).tolist() == [4, 2]
    assert train["image"].shape == (24, 6, 6, 1)
    np.testing.assert_array_equal(train["image"][:, 0, 0, 0], [10] * 16 + [200] * 8)


def test_a_folder_without_subfolders_has_no_labels_and_streams_when_it_is_large(tmp_path):
    for i in range(10):
        write(tmp_path / f"{i}.png", 10 * i)
    held = sources.folder(tmp_path, size=4)
    streamed = sources.folder(tmp_path, size=4, memory_limit=0)
    assert isinstance(held.train, sources.Memory) and isinstance(streamed.train, sources.Stream)
    assert held.classes == () and set(everything(held.train)) == {"image"}
    for split in ("train", "test"):
        one, two = everything(getattr(held, split)), everything(getattr(streamed, split))
        np.testing.assert_array_equal(one["image"], two["image"])
    levels = [
        *everything(held.train)["image"][:, 0, 0, 0],
        *everything(held.test)["image"][:, 0, 0, 0],
    ]
    assert sorted(levels) == [10 * i for i in range(10)]


def test_which_files_are_held_out_depends_on_their_names(tmp_path):
    for where in ("a", "b"):
        for i in range(20):
            write(tmp_path / where / f"{i}.png", i)
    a = sources.folder(tmp_path / "a", size=4, test_fraction=0.25)
    b = sources.folder(tmp_path / "b", size=4, test_fraction=0.25)
    np.testing.assert_array_equal(everything(a.test)["image"], everything(b.test)["image"])
    assert len(a.test) == 5


def test_a_folder_that_is_divided_stays_so(tmp_path):
    write(tmp_path / "train" / "x" / "1.png", 1)
    write(tmp_path / "train" / "y" / "1.png", 2)
    write(tmp_path / "val" / "y" / "1.png", 3)
    data = sources.folder(tmp_path, size=4, channels=1)
    assert data.classes == ("x", "y")
    assert everything(data.train)["label"].tolist() == [0, 1]
    assert everything(data.test)["label"].tolist() == [1]
    assert everything(data.test)["image"][0, 0, 0, 0] == 3


@pytest.fixture
def damaged(tmp_path):
    """Eight images, of which two cannot be read: one cut short, one no image at all."""
    for i in range(8):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "5.png").write_text("hello")
    return tmp_path


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_unreadable_files_are_named_once_and_skipped(damaged, memory_limit):
    with pytest.warns(UserWarning, match="skipped 2 of 8 files") as caught:
        data = sources.folder(
            damaged, size=8, on_error="skip", test_fraction=0, memory_limit=memory_limit
        )
    assert len(caught) == 1
    assert "3.png" in str(caught[0].message) and "5.png" in str(caught[0].message)
    assert everything(data.train)["image"].shape == (6, 8, 8, 3)
    assert len(data.test) == 0


def test_unreadable_files_are_refused_by_name(damaged):
    with pytest.raises(ValueError, match=r"3\.png is not a readable image"):
        sources.folder(damaged, size=8, on_error="refuse", test_fraction=0)
    streamed = sources.folder(damaged, size=8, on_error="refuse", test_fraction=0, memory_limit=0)
    assert streamed.train.read(np.array([0, 7]))["image"].shape == (2, 8, 8, 3)
    with pytest.raises(ValueError, match=r"5\.png is not a readable image"):
        streamed.train.read(np.array([5]))


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent"):
        sources.folder(tmp_path / "absent", size=4)
    with pytest.raises(FileNotFoundError, match="no readable image"):
        sources.folder(tmp_path, size=4)
    write(tmp_path / "1.png", 1)
    write(tmp_path / "cat" / "1.png", 1)
    with pytest.raises(ValueError, match="one subfolder per class, or none"):
        sources.folder(tmp_path, size=4)
    for wrong in ({"on_error": "ignore"}, {"channels": 2}, {"test_fraction": 1.0}, {"size": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            sources.folder(tmp_path, **({"size": 4} | wrong))


def test_a_missing_tfds_folder_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent; set TFDS_DATA_DIR"):
        sources.tfds("mnist", data_dir=tmp_path / "absent")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        sources.tfds("mnist")


def test_an_unknown_tfds_name_gets_the_nearest_one_that_is_there(tmp_path):
    (tmp_path / "my_birds").mkdir()
    (tmp_path / "fish").mkdir()
    with pytest.raises(FileNotFoundError, match=r"'my_bird'; did you mean 'my_birds'\?.*'fish'"):
        sources.tfds("my_bird", data_dir=tmp_path)


def test_a_tfds_name_that_was_never_prepared_says_how_to(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not prepared \(tfds build mnist --file"):
        sources.tfds("mnist", data_dir=tmp_path)


@pytest.fixture(scope="session")
def tfds_data_dir():
    return os.environ["TFDS_DATA_DIR"]


@pytest.mark.real_data
def test_mnist_is_the_original(tfds_data_dir):
    data = sources.tfds("mnist")
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.classes == tuple("0123456789")
    assert isinstance(data.train, sources.Kept)
    test = everything(data.test)
    assert test["image"].shape == (10_000, 28, 28, 1) and test["image"].dtype == np.uint8
    # Those of the published test file.
    assert np.bincount(test["label"]).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    assert test["image"].mean() / 255 == pytest.approx(0.1325, abs=1e-4)
    first = data.train.read(np.arange(10))["label"]
    assert first.tolist() == [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]


@pytest.mark.real_data
def test_pixels_are_those_that_tfds_itself_decodes(tfds_data_dir):
    import tensorflow_datasets

    for name in ("mnist", "cifar10_jpeg"):
        theirs = tensorflow_datasets.builder(name, data_dir=tfds_data_dir).as_data_source("test")
        ours = sources.tfds(name).test.read(np.arange(5, 10))
        for i in range(5):
            np.testing.assert_array_equal(ours["image"][i], theirs[5 + i]["image"])
            assert ours["label"][i] == theirs[5 + i]["label"]


@pytest.mark.real_data
def test_cifar10_has_colour_and_class_names(tfds_data_dir):
    data = sources.tfds("cifar10_jpeg", memory_limit=0)
    assert isinstance(data.train, sources.Stream)
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert data.classes[:3] == ("airplane", "automobile", "bird") and len(data.classes) == 10
    read = data.train.read(np.array([49_999, 0]))
    assert read["image"].shape == (2, 32, 32, 3)
    kept = sources.tfds("cifar10_jpeg").train.read(np.array([49_999, 0]))
    np.testing.assert_array_equal(read["image"], kept["image"])
    small = sources.tfds("cifar10_jpeg", size=16, channels=1).train.read(np.array([0]))
    assert small["image"].shape == (1, 16, 16, 1)


@pytest.mark.real_data
def test_emoji_keep_or_lose_their_transparency(tfds_data_dir):
    index = np.arange(4)
    rgba = sources.tfds("noto_emoji").train.read(index)
    assert rgba["image"].shape == (4, 72, 72, 4) and "label" not in rgba
    rgb = sources.tfds("noto_emoji", channels=3).train.read(index)["image"]
    assert (rgb[rgba["image"][..., 3] == 0] == 255).all()
    from aigc_jax.data.transforms import over_white

    np.testing.assert_allclose(over_white(rgba)["image"].astype(int), rgb, atol=1)


@pytest.mark.real_data
def test_a_data_set_without_images_is_refused(tfds_data_dir):
    with pytest.raises(ValueError, match="'tiny_shakespeare' has no image"):
        sources.tfds("tiny_shakespeare")


@pytest.mark.real_data
def test_reading_tfds_imports_no_tensorflow(tfds_data_dir):
    code = (
        "import sys, numpy as np\n"
        "from aigc_jax.data import sources\n"
        "sources.tfds('mnist').train.read(np.arange(3))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

import pickle
import re

import jax
import numpy as np
import pytest

from aigc_jax.data.batches import batches, whole
from aigc_jax.data.sources import Dataset, Kept, Stream, arrays, digits, stacked
from aigc_jax.data.transforms import normalise


def grey(n, first):
    """n images whose four pixels all are their number, from `first` on, of class number % 10."""
    number = first + np.arange(n)
    image = np.broadcast_to(number[:, None, None, None], (n, 2, 2, 1)).astype(np.uint8)
    return {"image": image, "label": number % 10}


GREY = arrays(grey(50, 0), grey(30, 100), classes=tuple("0123456789"), name="grey")


@pytest.mark.parametrize("limit", [0, 2**31])
def test_channels_are_images_of_the_split_and_the_label_spells_theirs(limit):
    data = stacked(GREY, train=300, test=80, memory_limit=limit)
    assert (len(data.train), len(data.test), data.name) == (300, 80, "stacked_grey")
    for source, numbers in ((data.train, range(50)), (data.test, range(100, 130))):
        examples = whole(source)
        image, label = examples["image"], examples["label"]
        assert image.shape == (len(source), 2, 2, 3) and image.dtype == np.uint8
        assert label.dtype == np.int32
        assert (image == image[:, :1, :1]).all()
        assert set(np.unique(image)) == set(numbers)  # all of its split, none of the other
        a, b, c = image[:, 0, 0].astype(int).T % 10
        np.testing.assert_array_equal(label, 100 * a + 10 * b + c)
        names = [data.classes[i] for i in label]
        assert names == [f"{x}{y}{z}" for x, y, z in zip(a, b, c, strict=True)]
    assert len(data.classes) == 1000 and data.classes[7] == "007"


def test_triples_are_drawn_evenly_and_channels_apart():
    image = whole(stacked(GREY, train=30_000).train)["image"][:, 0, 0].astype(int)  # -> (n, 3)
    counts = np.stack([np.bincount(channel, minlength=50) for channel in image.T])
    assert np.abs(counts - 600).max() < 5 * np.sqrt(600)
    correlation = np.corrcoef(image.T)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(30_000)


def test_a_seed_repeats_its_triples_whatever_is_read_first():
    index = np.array([7, 3, 7, 199])
    one, two, other = (stacked(GREY, train=200, test=9, seed=s).train for s in (1, 1, 2))
    two.read(np.arange(100))
    np.testing.assert_array_equal(one.read(index)["image"], two.read(index)["image"])
    assert (one.read(index)["image"] != other.read(index)["image"]).any()
    np.testing.assert_array_equal(whole(one)["image"][index], one.read(index)["image"])


def test_nothing_is_gathered_until_it_is_read():
    asked = []

    class Counted:
        def __len__(self):
            return 50

        def read(self, index):
            asked.append(len(index))
            return GREY.train.read(index)

    data = stacked(Dataset(Counted(), Counted(), (), "counted"))
    assert (len(data.train), len(data.test)) == (128_000, 26_000)
    assert sum(asked) == 1  # one image, to see that it is grey
    data.train.read(np.arange(5))
    assert sum(asked) == 1 + 3 * 5
    assert "label" not in data.train.read(np.arange(5)) and data.classes == ()


def test_devices_may_hold_it_and_workers_may_read_it():
    data = stacked(digits(), train=64, test=8)
    assert isinstance(data.train, Kept)
    stream = batches(data.train, 16, seed=0, transform=normalise, process=(0, 1))
    held = stream.resident()
    batch = jax.jit(held.gather)(held.columns, next(held.stream(2, 3)))
    np.testing.assert_array_equal(batch["label"], stream[2]["label"])
    np.testing.assert_allclose(batch["image"], stream[2]["image"], atol=1e-6)
    large = stacked(digits(), memory_limit=0).train
    assert isinstance(large, Stream)
    index = np.array([100_000, 5])
    again = pickle.loads(pickle.dumps(large))
    np.testing.assert_array_equal(again.read(index)["image"], large.read(index)["image"])


def test_names_of_several_letters_are_kept_apart():
    pets = arrays(grey(4, 0), grey(4, 0), classes=("cat", "dog"))
    assert stacked(pets, train=1, test=1).classes[:3] == (
        "cat-cat-cat",
        "cat-cat-dog",
        "cat-dog-cat",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, "train=0 must be at least 1"),
        ({"test": 0}, "test=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        stacked(GREY, **options)


def test_colour_images_are_refused():
    image = {"image": np.zeros((2, 4, 4, 3), np.uint8)}
    with pytest.raises(ValueError, match=r"^stacked needs grey images .* are \(4, 4, 3\)$"):
        stacked(arrays(image, image, name="colour"))

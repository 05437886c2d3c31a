import functools
import os

import numpy as np
import pytest

from aigc_jax.data.text import lines, open_texts, text_lines, to_arrays
from aigc_jax.data.tokenizer import train_tokenizer

PLAY = [f"Line {'x' * (i % 3)} of {['four', 'five', 'six'][i % 3]}, number {i}." for i in range(40)]


@functools.cache
def tokenizer(kind="bpe"):
    return train_tokenizer(PLAY, kind=kind, vocabulary=300)


@pytest.fixture
def play(tmp_path):
    path = tmp_path / "play.txt"
    speeches = [f"SPEAKER {i}:\n{line}\n" for i, line in enumerate(PLAY)]
    path.write_text("\n".join(speeches), "utf-8")
    return path


def test_lines_are_what_is_said():
    assert lines("  A:\n one \n\n\nB:\ntwo:\nthree\n\nfour\r\nC:") == [
        "one",
        "two:",
        "three",
        "four",
        "C:",
    ]


def test_arrays_are_padded_and_leave_out_what_does_not_fit():
    t = tokenizer("word")
    arrays = to_arrays(t, ["Line of", "Line of four", "Line"], 3)
    assert arrays["tokens"].dtype == np.int32 and arrays["mask"].dtype == np.float32
    line, of = t.encode("Line of")
    assert arrays["tokens"].tolist() == [[line, of, t.end], [line, t.end, t.pad]]
    assert arrays["mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_arrays_need_a_token_that_ends_and_one_that_fills_up():
    with pytest.raises(ValueError, match=r"special tokens end, pad; end, pad is missing"):
        to_arrays(train_tokenizer(PLAY, kind="char"), PLAY, 9)


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_lines_of_characters_and_of_bytes_end_and_are_padded_too(play, kind):
    data, t = text_lines(str(play), length=60, kind=kind)
    assert (t.pad, t.start, t.end, t.unk) == (0, 1, 2, 3)
    assert [t.decode(row) for row in data.train.columns["tokens"]] == PLAY[:36]


@pytest.mark.parametrize(("held_out", "at"), [("test", 38), ("validation", 36)])
def test_a_file_is_split_by_position_and_only_its_first_part_trains_the_tokenizer(
    play, held_out, at
):
    data, t = text_lines(str(play), length=60, vocabulary=300, held_out=held_out)
    read = lambda source: [t.decode(row) for row in source.columns["tokens"]]
    assert read(data.train) == PLAY[:36] and read(data.test) == PLAY[at : at + 2]
    assert data.name == "play" and data.classes == ()
    only = train_tokenizer(PLAY[:36], vocabulary=300)
    assert t.inner.to_str() == only.inner.to_str() != tokenizer().inner.to_str()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 1}, r"^length=1 must be at least 2"),
        ({"length": 2}, r"^none of the 36 lines of .*play\.txt train fits length=2$"),
        ({"kind": "line"}, r"^kind='line' must be one of 'bpe', 'word', 'char', 'byte'$"),
        ({"held_out": "train"}, r"^held_out='train' must be one of 'test', 'validation'$"),
    ],
)
def test_arguments_out_of_range_are_refused(play, arguments, message):
    with pytest.raises(ValueError, match=message):
        text_lines(str(play), **{"length": 60, **arguments})


def test_a_file_that_is_missing_too_short_or_no_text_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*a\.txt"):
        text_lines(str(path), length=9)
    path.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"a\.txt has 2 lines; three splits need at least 20"):
        text_lines(str(path), length=9)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text"):
        text_lines(str(path), length=9)


def test_a_data_set_that_is_missing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tfds data set name='shakespeare'"):
        text_lines("shakespeare", length=9, data_dir=str(tmp_path))


@pytest.mark.real_data
def test_tiny_shakespeare_is_read_by_its_own_splits():
    data, t = text_lines("tiny_shakespeare", length=24)
    assert (len(data.train), len(data.test), t.size) == (22940, 1334, 2000)
    assert t.decode(data.train.columns["tokens"][0]) == (
        "Before we proceed any further, hear me speak."
    )
    assert data.train.columns["mask"].sum(1).max() == 24
    assert (data.train.columns["tokens"] != t.unk).all()


@pytest.mark.real_data
def test_a_data_set_of_images_has_no_text():
    assert os.environ["TFDS_DATA_DIR"]
    with pytest.raises(ValueError, match="name='mnist' has no text"):
        text_lines("mnist", length=9)


@pytest.mark.real_data
def test_texts_of_a_set_are_decoded_as_they_are_read():
    splits = open_texts("tiny_shakespeare")
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }
    [text] = splits["train"]
    assert text.startswith("First Citizen:\n") and text == splits["train"][0]

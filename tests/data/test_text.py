import functools
import os

import numpy as np
import pytest

from aigc_jax.data.text import lines, text_lines, to_arrays, train_tokenizer

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


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_training_texts_survive_the_way_there_and_back(kind):
    encoded = [tokenizer(kind).encode(line) for line in PLAY]
    assert [tokenizer(kind).decode(tokens) for tokens in encoded] == PLAY
    assert not {0, 1, 2, 3} & {token for tokens in encoded for token in tokens}


def test_pieces_write_anything_and_words_mark_what_they_do_not_know():
    strange = "Zoë, <end> 7 \N{SNOWMAN}"
    assert tokenizer().decode(tokenizer().encode(strange)) == strange
    assert tokenizer("word").decode(tokenizer("word").encode("Line of seven,")) == "Line of <unk>,"


def test_the_same_texts_train_the_same_tokenizer():
    for kind in ("bpe", "word"):
        again = train_tokenizer(iter(PLAY), kind=kind, vocabulary=300)
        assert again.inner.to_str() == tokenizer(kind).inner.to_str()


def test_special_tokens_have_the_ids_they_are_said_to():
    t = tokenizer()
    assert [t.inner.id_to_token(i) for i in (t.pad, t.start, t.end, t.unk)] == [
        "<pad>",
        "<start>",
        "<end>",
        "<unk>",
    ]
    assert t.size == 300 and tokenizer("word").size < 300


def test_decoding_stops_at_the_end_or_at_padding():
    t = tokenizer("word")
    line, of = t.encode("Line of")
    assert t.decode([line, of, t.end, line]) == "Line of"
    assert t.decode(np.array([line, t.pad, of])) == "Line"
    assert t.decode([]) == ""
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 2\)"):
        t.decode([[line, of]])


def test_arrays_are_padded_and_leave_out_what_does_not_fit():
    t = tokenizer("word")
    arrays = to_arrays(t, ["Line of", "Line of four", "Line"], 3)
    assert arrays["tokens"].dtype == np.int32 and arrays["mask"].dtype == np.float32
    line, of = t.encode("Line of")
    assert arrays["tokens"].tolist() == [[line, of, t.end], [line, t.end, t.pad]]
    assert arrays["mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


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
        ({"kind": "char"}, r"^kind='char' must be one of 'bpe', 'word'$"),
        ({"vocabulary": 259}, r"^vocabulary=259 must be at least 260 for kind='bpe'$"),
        ({"kind": "word", "vocabulary": 4}, r"^vocabulary=4 must be at least 5 for kind='word'$"),
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

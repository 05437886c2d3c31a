import collections
import itertools
import re

import jax
import numpy as np
import pytest

from aigc_jax.data import tokens
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import Stream
from aigc_jax.data.tokenizer import train_tokenizer
from aigc_jax.data.tokens import (
    Windows,
    fit_tokenizer,
    open_text,
    pack,
    read_stream,
    text_stream,
    token_type,
    write_stream,
)

PLAY = "".join(f"SPEAKER {i}:\nLine {'é' * (i % 3)} of  four.\n\n" for i in range(60))


@pytest.fixture
def play(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text(PLAY, "utf-8")
    return path


def folder(path, tokenizer, train, test):
    tokenizer.save(path)
    write_stream(path / "train.npy", [train], tokenizer)
    write_stream(path / "test.npy", [test], tokenizer)
    return path


# Streams


@pytest.mark.parametrize("block", [1, 30, 2**20])
def test_documents_are_separated_by_the_end_whatever_is_encoded_at_once(
    tmp_path, monkeypatch, block
):
    monkeypatch.setattr(tokens, "BLOCK", block)
    t = train_tokenizer(["abc "], kind="char", special=("unk", "end"))
    path = tmp_path / "a.npy"
    assert write_stream(path, ["ab", ["b", "", "c"], "", "a " * 50], t) == (107, 105 - 1)
    stream = read_stream(path)
    assert isinstance(stream, np.memmap) and stream.dtype == np.uint16
    assert stream[:8].tolist() == [3, 4, 1, 4, 5, 1, 1, 3] and len(stream) == 107
    whole = np.load(path)
    assert whole.flags.c_contiguous and whole.tolist() == stream.tolist()
    plain = train_tokenizer(["abc "], kind="char")
    assert write_stream(path, ["ab", ["b", "c"], "", "a"], plain).tokens == 5
    assert read_stream(path).tolist() == [1, 2, 2, 3, 1]
    assert write_stream(path, [], plain) == (0, 0)


def test_a_large_vocabulary_takes_32_bits(tmp_path):
    letters = [chr(0x20000 + i) for i in range(2**16 + 1)]
    t = train_tokenizer(letters[:-1], kind="char")
    assert t.size == 2**16 and token_type(t) == np.uint16
    t = train_tokenizer(letters, kind="char")
    assert token_type(t) == np.uint32
    write_stream(tmp_path / "a.npy", [letters[-1] + letters[0]], t)
    assert read_stream(tmp_path / "a.npy").tolist() == [2**16, 0]


def test_what_broke_off_or_is_no_stream_is_refused(tmp_path):
    t = train_tokenizer(["abc"], kind="char")
    path = tmp_path / "a.npy"

    def broken():
        yield "abc"
        yield "d"

    with pytest.raises(ValueError, match="no token for 'd'"):
        write_stream(path, broken(), t)
    with pytest.raises(ValueError, match=r"a\.npy holds uint16 of shape \(0,\); a stream of"):
        read_stream(path)
    for wrong in (np.zeros(3, np.int32), np.zeros((2, 2), np.uint16), np.zeros(3)):
        np.save(path, wrong)
        with pytest.raises(ValueError, match=rf"a\.npy holds {wrong.dtype} of shape"):
            read_stream(path)
    write_stream(path, ["abcabc"], t)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"a\.npy is damaged, or not an \.npy file of tokens"):
        read_stream(path)
    for content in (b"", b"text\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npy is damaged, or not an \.npy file of tokens"):
            read_stream(path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*b\.npy"):
        read_stream(tmp_path / "b.npy")


# Windows


@pytest.mark.parametrize(
    ("length", "stride", "n"), [(4, 1, 10), (4, 3, 10), (10, 7, 10), (1, 2, 5)]
)
def test_a_window_starts_at_its_stride_and_the_last_one_fits(tmp_path, length, stride, n):
    np.save(tmp_path / "a.npy", np.arange(n, dtype=np.uint16))
    source = Windows(read_stream(tmp_path / "a.npy"), length, stride)
    rows = source.read(np.arange(len(source)))["tokens"]
    assert type(rows) is np.ndarray and rows.dtype == np.int32
    expected = [range(i, i + length) for i in range(0, n - length + 1, stride)]
    assert rows.tolist() == [list(row) for row in expected]
    rows[:] = 7  # no window into the stream itself


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_batches_gathered_on_a_device_are_those_of_indexing(dtype):
    stream = np.random.default_rng(0).integers(0, np.iinfo(dtype).max // 2, 101).astype(dtype)
    for stride in (1, 5):
        windows = batches(Windows(stream, 9, stride), 6, seed=3)
        columns, sent, gather = windows.resident()
        assert columns["tokens"].shape == (101,) and columns["tokens"].dtype == dtype
        gather = jax.jit(gather)
        for step in (0, 3, 50):
            batch, expected = gather(columns, next(sent(step, step + 1))), windows[step]
            assert batch.keys() == expected.keys() == {"tokens"}
            assert batch["tokens"].dtype == expected["tokens"].dtype == np.int32
            np.testing.assert_array_equal(batch["tokens"], expected["tokens"])


def test_the_limit_is_of_the_stream_and_a_transform_gets_the_windows():
    def drop(examples, address):
        hidden = address.bits("drop")[:, None] >> np.uint32(31) == 1
        xp = examples["tokens"].__array_namespace__()
        return {"tokens": xp.where(hidden, 0, examples["tokens"])}

    source = Windows(np.arange(1, 101, dtype=np.uint16), 10)
    windows = batches(source, 8, seed=0, transform=drop)
    columns, stream, gather = windows.resident(limit=200)
    batch = jax.jit(gather)(columns, next(stream(2, 3)))["tokens"]
    np.testing.assert_array_equal(batch, windows[2]["tokens"])
    assert set((batch == 0).all(1).tolist()) == {True, False}
    with pytest.raises(ValueError, match="the data takes 200 bytes, and the limit is 199"):
        windows.resident(199)
    with pytest.raises(ValueError, match="a Stream is not held in memory"):
        batches(Stream(9, source.read), 2, seed=0).resident()
    huge = Windows(np.broadcast_to(np.uint16(0), 2**31), 10)
    with pytest.raises(ValueError, match=r"a stream of 2,147,483,648 tokens has 2³¹ or more"):
        batches(huge, 2, seed=0).resident()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, r"^length=0 must be at least 1$"),
        ({"stride": 0}, r"^stride=0 must be at least 1$"),
        ({"length": 11}, r"^stream has 10 tokens; a window has length=11$"),
        ({"stream": np.zeros((2, 5), np.uint16)}, r"^stream is uint16 of shape \(2, 5\); it must"),
        ({"stream": np.zeros(10)}, r"^stream is float64 of shape \(10,\); it must be integers"),
    ],
)
def test_windows_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Windows(**{"stream": np.zeros(10, np.uint16), "length": 4, **arguments})


# Packing


@pytest.mark.parametrize("end", [None, 999])
def test_packed_rows_hold_every_document_and_predict_every_token_but_the_first_once(end):
    rng = np.random.default_rng(0)
    length = 16
    documents = [list(map(int, rng.integers(1, 900, rng.integers(0, 60)))) for _ in range(120)]
    rows = pack(documents, length, end=end)
    assert {name: x.dtype.name for name, x in rows.items()} == {
        "tokens": "int32",
        "mask": "float32",
        "segment": "int32",
        "position": "int32",
    }
    assert {x.shape[1] for x in rows.values()} == {length}
    whole = [[*d, *([] if end is None else [end])] for d in documents]
    whole = [d for d in whole if len(d) > 1]
    pairs = collections.Counter(pair for d in whole for pair in itertools.pairwise(d))
    found = collections.Counter()
    for token, mask, segment, position in zip(*rows.values(), strict=True):
        for i in range(length):
            first = i == 0 or segment[i] != segment[i - 1]
            assert mask[i] == (segment[i] > 0 and not first)
            if segment[i]:
                assert position[i] == (0 if first else position[i - 1] + 1)
                assert i == 0 or segment[i] == segment[i - 1] + first
            else:
                assert token[i] == position[i] == 0 and not segment[i:].any()
            if mask[i]:
                found[int(token[i - 1]), int(token[i])] += 1
    assert found == pairs
    # As dense as can be: no two rows would fit into one.
    space = np.sort((rows["segment"] == 0).sum(1))[::-1]
    assert space[0] + space[1] < length
    short = [d for d in whole if len(d) <= length]
    kept = [
        token[segment == k].tolist()
        for token, segment in zip(rows["tokens"], rows["segment"], strict=True)
        for k in range(1, segment.max() + 1)
    ]
    assert all(d in kept for d in short)


def test_a_document_longer_than_a_row_goes_on_from_its_last_token():
    rows = pack([[1, 2, 3, 4, 5, 6, 7]], 4, end=9, pad=8)
    assert rows["tokens"].tolist() == [[1, 2, 3, 4], [4, 5, 6, 7], [7, 9, 8, 8]]
    assert rows["mask"].tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 0]]


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match=r"^length=1 must be at least 2"):
        pack([[1, 2]], 1)
    for documents in ([], [[], [1]]):
        with pytest.raises(ValueError, match="no document has a token to predict"):
            pack(documents, 4)
    assert pack([[1]], 4, end=2)["tokens"].tolist() == [[1, 2, 0, 0]]


# Texts


@pytest.mark.parametrize("block", [64, 2**20])
@pytest.mark.parametrize("kind", ["bpe", "word", "char", "byte"])
def test_a_file_is_split_by_position(play, monkeypatch, kind, block):
    monkeypatch.setattr(tokens, "BLOCK", block)
    monkeypatch.setattr(tokens.pieces, "__defaults__", (50,))
    train, test, t = text_stream(play, kind=kind, vocabulary=300, test=0.25)
    at = int(len(PLAY) * 0.75)
    assert train.dtype == test.dtype == np.uint16
    assert train.tolist() == t.encode(PLAY[:at]) and test.tolist() == t.encode(PLAY[at:])
    if kind != "word":
        assert t.decode(train) + t.decode(test) == PLAY
    again = train_tokenizer([PLAY[:at]], kind=kind, vocabulary=300, prefix=False)
    assert t.to_json() == again.to_json()


def test_characters_are_those_of_both_splits(play):
    play.write_text(PLAY + "ß", "utf-8")
    stream = text_stream(play, kind="char")
    [token] = stream.tokenizer.encode("ß")
    assert stream.test[-1] == token and token not in stream.train
    known = train_tokenizer([PLAY], kind="char")
    with pytest.raises(ValueError, match="no token for 'ß'"):
        text_stream(play, tokenizer=known)


def test_a_given_tokenizer_is_taken_as_it_is_or_from_where_it_is(play, tmp_path):
    given = train_tokenizer([PLAY, "xyz"], kind="char", special=("end",))
    given.save(tmp_path / "t")
    for tokenizer in (given, tmp_path / "t", str(tmp_path / "t" / "tokenizer.json")):
        train, test, t = text_stream(str(play), tokenizer=tokenizer)
        assert t.to_json() == given.to_json() and given.end not in {*train, *test}
        assert [*train, *test] == given.encode(PLAY)


def test_a_folder_of_tokens_is_mapped(tmp_path):
    t = train_tokenizer([PLAY], kind="char")
    path = folder(tmp_path / "made", t, PLAY, PLAY[:100])
    train, test, loaded = text_stream(path, kind="bpe")
    assert isinstance(train, np.memmap) and isinstance(test, np.memmap)
    assert loaded.decode(train) == PLAY and loaded.decode(test) == PLAY[:100]
    with pytest.raises(ValueError, match="made holds tokens, of its own tokenizer"):
        text_stream(path, tokenizer=t)
    np.save(path / "test.npy", np.array([3, t.size], np.uint16))
    with pytest.raises(
        ValueError, match=rf"made/test\.npy holds the token {t.size}, and .* has {t.size}: they"
    ):
        text_stream(path)
    (path / "test.npy").unlink()
    said = f"{path} holds no test.npy; aigc tokenize TEXT --out {path} makes it"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(said)}$"):
        text_stream(path)


def test_texts_that_are_missing_too_short_or_no_text_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    for where in (path, "a.txt", tmp_path / "a"):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*a"):
            text_stream(where)
    for text in (b"", b"a"):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=rf"a\.txt has {len(text)} characters, too few for"):
            text_stream(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text"):
        text_stream(path)
    for test in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"^test={test} must be between 0 and 1$"):
            text_stream(path, test=test)
    with pytest.raises(FileNotFoundError, match="no tfds data set name='shakespeare'"):
        text_stream("shakespeare", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("splits", "train", "test"),
    [
        ({"train": ["ab"], "validation": ["c"], "test": ["d"]}, [["ab"]], [["c", "d"]]),
        ({"train": ["a", "b"], "test": ["c"], "all": ["x"]}, [["a"], ["b"]], [["c"]]),
        (
            {"test": ["d", "e"], "validation": ["c"], "train": ["a"]},
            [["a"]],
            [["c"], ["d"], ["e"]],
        ),
        ({"train": list("abcdefghij")}, [[c] for c in "abcdefgh"], [["i"], ["j"]]),
    ],
)
def test_a_set_has_splits_of_its_own_unless_it_has_only_one(monkeypatch, splits, train, test):
    monkeypatch.setattr(tokens, "open_texts", lambda name, data_dir: splits)
    corpus = open_text("some_set", test=0.2)
    for documents, expected in ((corpus.train, train), (corpus.test, test)):
        for _ in range(2):  # from the first on at every call
            got = [[d] if isinstance(d, str) else list(d) for d in documents()]
            assert got == expected


def test_a_set_without_enough_to_split_is_refused(monkeypatch):
    for splits, message in (
        ({"all": ["a"]}, r"needs the split train, has \['all'\]"),
        ({"train": ["a"]}, "has 1 texts, too few for two splits"),
    ):
        monkeypatch.setattr(tokens, "open_texts", lambda *_, splits=splits: splits)
        with pytest.raises(ValueError, match=f"^tfds name='some_set' {message}"):
            open_text("some_set")


@pytest.mark.real_data
def test_tiny_shakespeare_is_nanogpts():
    train, test, t = text_stream("tiny_shakespeare", kind="char")
    assert (len(train), len(test), t.size) == (1_003_854, 111_540, 65)
    assert t.decode(np.arange(65)) == (
        "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    )
    # What nanoGPT's data/shakespeare_char/prepare.py would write.
    assert t.decode(train[:14]) == "First Citizen:" and train[:5].tolist() == [18, 47, 56, 57, 58]
    assert t.decode(test[:12]) == "?\n\nGREMIO:\nG" and t.decode(test[-20:]).endswith("\n")


@pytest.mark.real_data
def test_pieces_of_tiny_shakespeare_are_fewer_and_write_it_again():
    corpus = open_text("tiny_shakespeare")
    t = fit_tokenizer(corpus, vocabulary=2000)
    train, test, _ = text_stream("tiny_shakespeare", tokenizer=t)
    assert 2.5 < 111_540 / len(test) < 1_003_854 / len(train) < 3.2
    [blocks] = corpus.test()
    assert t.decode(test) == "".join(blocks) and t.end not in test

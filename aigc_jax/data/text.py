"""Text: lines of a file or of a TFDS set, as arrays of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from aigc_jax.data.prepared import find_feature, open_builder, read_split
from aigc_jax.data.sources import Dataset, Examples, Memory
from aigc_jax.data.tokenizer import LINE, Kind, Tokenizer, train_tokenizer

HeldOut = Literal["test", "validation"]


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of a split of a TFDS set, decoded as they are read."""

    records: Any = field(repr=False)
    key: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> str:
        return self.records[index][self.key].decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


def text_lines(
    where: str,
    *,
    length: int,
    kind: Kind = "bpe",
    vocabulary: int = 2000,
    held_out: HeldOut = "test",
    data_dir: str | None = None,
) -> tuple[Dataset, Tokenizer]:
    """Open the lines of a text as examples, and the tokenizer trained on the training split.

    Examples hold `tokens` (length,) int32, a line's own and the end, padded; and `mask` (length,)
    float32, 1 for each of those and 0 for the padding. Lines that do not fit are left out: cut ones
    would teach that a line ends anywhere, or nowhere.

    Args:
        where: a TFDS name, such as `tiny_shakespeare`, whose own splits are kept; or a file of
            UTF-8 text, of whose lines the first 90 % train, 5 % validate and the last 5 % test.
        length: the tokens of the longest line, its end included.
        kind: `bpe`, pieces of words down to bytes, which leave nothing unknown; `word`, the most
            frequent words and marks; `char`, characters; or `byte`, bytes.
        vocabulary: how many tokens of `bpe` and `word` to train, the special ones included.
        held_out: the split that is `Dataset.test`.
        data_dir: where TFDS prepared the set; by default `$TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`.

    Raises:
        FileNotFoundError: there is no such file or data set.
        ValueError: an argument is out of range, the set has no text or lacks a split, the file is
            not UTF-8, or no line of a split fits.
    """
    if length < 2:
        raise ValueError(f"length={length} must be at least 2, a token and the end")
    if held_out not in get_args(HeldOut):
        raise ValueError(f"held_out={held_out!r} must be one of {_quoted(HeldOut)}")
    train, test = _splits(where, held_out, data_dir)
    tokenizer = train_tokenizer(train, kind=kind, vocabulary=vocabulary, special=LINE)

    def memory(split: str, texts: list[str]) -> Memory:
        columns = to_arrays(tokenizer, texts, length)
        if not len(columns["tokens"]):
            raise ValueError(f"none of the {len(texts)} lines of {where} {split} fits {length=}")
        return Memory(columns)

    data = Dataset(memory("train", train), memory(held_out, test), (), Path(where).stem)
    return data, tokenizer


def lines(text: str) -> list[str]:
    """Return what is said, line by line: neither empty lines nor, in a play, who says it.

    A name is a line that ends in a colon and stands first or after an empty line.

    Example:
        >>> lines("ALL:\\nSpeak, speak.\\n\\nROMEO:\\nWhat said he:\\nay?\\n")
        ['Speak, speak.', 'What said he:', 'ay?']
    """
    said, before = [], ""
    for line in map(str.strip, text.splitlines()):
        if line and (before or not line.endswith(":")):
            said.append(line)
        before = line
    return said


def open_texts(name: str, data_dir: str | None = None) -> dict[str, Texts]:
    """Open a prepared TFDS set of texts, without TensorFlow.

    Args:
        name: as TFDS knows it, such as `tiny_shakespeare`.
        data_dir: where it was prepared; by default `$TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`.

    Returns:
        The texts of each split.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: the set has no text, or was prepared in a format that cannot be read at random.
    """
    import tensorflow_datasets

    builder = open_builder(name, data_dir)
    features = builder.info.features
    key = find_feature(name, features, tensorflow_datasets.features.Text, "text")
    if key is None:
        raise ValueError(f"tfds name={name!r} has no text among its features, {list(features)}")
    return {split: Texts(read_split(builder, split), key) for split in builder.info.splits}


def to_arrays(tokenizer: Tokenizer, texts: list[str], length: int) -> Examples:
    """Return `tokens` (n, length) int32 and `mask` (n, length) float32 of the texts that fit.

    Example:
        >>> tokenizer = train_tokenizer(["to be"], kind="word", vocabulary=6)
        >>> to_arrays(tokenizer, ["to be", "be", "to be to be"], 4)["tokens"].tolist()
        [[5, 4, 2, 0], [4, 2, 0, 0]]
    """
    end, pad = tokenizer.special("end", "pad")
    rows = [[*each, end] for each in tokenizer.encode_batch(texts) if len(each) < length]
    tokens = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), np.float32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"tokens": tokens, "mask": mask}


def _splits(where: str, held_out: HeldOut, data_dir: str | None) -> tuple[list[str], list[str]]:
    """Return the lines to train on, and those held out."""
    path = Path(where)
    if not path.is_file():
        if path.suffix == ".txt":
            raise FileNotFoundError(f"there is no file {where}")
        return _tfds_splits(where, held_out, data_dir)
    try:
        said = lines(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text: {error}") from error
    if len(said) < 20:
        raise ValueError(f"{where} has {len(said)} lines; three splits need at least 20")
    first, last = len(said) * 90 // 100, len(said) * 95 // 100
    return said[:first], said[first:last] if held_out == "validation" else said[last:]


def _tfds_splits(name: str, held_out: HeldOut, data_dir: str | None) -> tuple[list[str], list[str]]:
    splits = open_texts(name, data_dir)
    if not {"train", held_out} <= set(splits):
        there = list(splits)
        raise ValueError(f"tfds name={name!r} needs the splits train and {held_out}, has {there}")

    def said(split: str) -> list[str]:
        return [line for text in splits[split] for line in lines(text)]

    return said("train"), said(held_out)


def _quoted(allowed: Any) -> str:
    return ", ".join(map(repr, get_args(allowed)))

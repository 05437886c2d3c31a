"""Text: lines of a file or of a TFDS set, as arrays of tokens."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from aigc_jax.data.prepared import find_feature, open_builder, read_split
from aigc_jax.data.sources import Dataset, Examples, Memory

Kind = Literal["bpe", "word"]
HeldOut = Literal["test", "validation"]

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
ALPHABET = 256  # bytes: with a token for each, there is nothing that BPE cannot write


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to tokens and back; trained by `train_tokenizer`.

    Attributes:
        inner: the `tokenizers.Tokenizer`.
        pad: the token that fills an array up.
        start: the one that stands before a text.
        end: the one that ends it.
        unk: the one for what is not in the vocabulary; of BPE, nothing.
    """

    inner: Any = field(repr=False)
    pad: int = 0
    start: int = 1
    end: int = 2
    unk: int = 3

    @property
    def size(self) -> int:
        """How many tokens there are, the four special ones included."""
        return self.inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, the start and the end not among them."""
        return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Any) -> str:
        """Return the text of (t,) tokens, up to the first end or padding."""
        tokens = np.asarray(tokens)
        if tokens.ndim != 1:
            raise ValueError(f"tokens has shape {tokens.shape}; a text's are (t,)")
        stops = np.flatnonzero((tokens == self.end) | (tokens == self.pad))
        tokens = tokens[: stops[0]] if stops.size else tokens
        text = self.inner.decode(tokens.tolist(), skip_special_tokens=False)
        return text.replace(SPECIAL[3], f" {SPECIAL[3]}").strip()  # a word has its space in it


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
        kind: `bpe`, pieces of words down to bytes (Sennrich et al. 2016), which leave nothing
            unknown; or `word`, words and marks, the most frequent.
        vocabulary: how many tokens to train, the special ones included.
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
    tokenizer = train_tokenizer(train, kind=kind, vocabulary=vocabulary)

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


def train_tokenizer(
    texts: Iterable[str], *, kind: Kind = "bpe", vocabulary: int = 2000
) -> Tokenizer:
    """Train a tokenizer; the same texts give the same one.

    A word carries the space before it, so that decoding gives back the text, spaces and all.

    Args:
        texts: what it learns from: the training split alone.
        kind: as of `text_lines`.
        vocabulary: how many tokens; fewer, if the texts have no more to give.

    Raises:
        ValueError: `kind` is unknown, or `vocabulary` is too small for the special tokens and,
            of BPE, the 256 bytes.

    Example:
        >>> tokenizer = train_tokenizer(["to be, or not to be"], kind="word", vocabulary=9)
        >>> tokenizer.encode("to be not"), tokenizer.decode(tokenizer.encode("not to see, or"))
        ([5, 4, 7], 'not to <unk>, or')
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} must be one of {_quoted(Kind)}")
    least = len(SPECIAL) + (ALPHABET if kind == "bpe" else 1)
    if vocabulary < least:
        raise ValueError(f"vocabulary={vocabulary} must be at least {least} for kind={kind!r}")
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "special_tokens": list(SPECIAL),
        "show_progress": False,
    }
    if kind == "bpe":
        inner = Inner(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **common)
    else:
        inner = Inner(models.WordLevel(unk_token=SPECIAL[3]))
        trainer = trainers.WordLevelTrainer(**common)
    # The space before the first word makes it the same token as anywhere else.
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    inner.encode_special_tokens = True  # a text that says <end> does not end there
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner)


def to_arrays(tokenizer: Tokenizer, texts: list[str], length: int) -> Examples:
    """Return `tokens` (n, length) int32 and `mask` (n, length) float32 of the texts that fit.

    Example:
        >>> tokenizer = train_tokenizer(["to be"], kind="word", vocabulary=6)
        >>> to_arrays(tokenizer, ["to be", "be", "to be to be"], 4)["tokens"].tolist()
        [[5, 4, 2, 0], [4, 2, 0, 0]]
    """
    encoded = tokenizer.inner.encode_batch(texts, add_special_tokens=False)
    rows = [[*each.ids, tokenizer.end] for each in encoded if len(each.ids) < length]
    tokens = np.full((len(rows), length), tokenizer.pad, np.int32)
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
    import tensorflow_datasets

    builder = open_builder(name, data_dir)
    splits, features = list(builder.info.splits), builder.info.features
    if not {"train", held_out} <= set(splits):
        raise ValueError(f"tfds name={name!r} needs the splits train and {held_out}, has {splits}")
    key = find_feature(name, features, tensorflow_datasets.features.Text, "text")
    if key is None:
        raise ValueError(f"tfds name={name!r} has no text among its features, {list(features)}")

    def said(split: str) -> list[str]:
        records = read_split(builder, split)
        return [line for record in records for line in lines(record[key].decode("utf-8"))]

    return said("train"), said(held_out)


def _quoted(allowed: Any) -> str:
    return ", ".join(map(repr, get_args(allowed)))

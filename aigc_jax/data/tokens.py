"""Streams of tokens: running text as one flat array, in memory or mapped from a file.

`text_stream` opens a text, and `batches(Windows(train, 257), 64, seed=0)` is what a language model
of 256 tokens of context trains on.
"""

import bisect
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.data.sources import Examples
from aigc_jax.data.text import Texts, open_texts
from aigc_jax.data.tokenizer import (
    Kind,
    Special,
    Tokenizer,
    load_tokenizer,
    pieces,
    train_tokenizer,
)

SHORTEST_BUCKET = 16

BLOCK = 2**20  # characters that are read, or encoded, before the next ones are

Documents = Iterable[str | Iterable[str]]  # a long one may come in blocks


class Corpus(NamedTuple):
    """The documents of two splits, as text.

    Attributes:
        train: `() -> Documents`, from the first on at every call.
        test: likewise.
    """

    train: Callable[[], Documents]
    test: Callable[[], Documents]


class TextStream(NamedTuple):
    """Two splits of a text as tokens.

    Attributes:
        train: (n,) uint16 or uint32.
        test: (m,) of the same type.
        tokenizer: whose tokens these are.
    """

    train: np.ndarray
    test: np.ndarray
    tokenizer: Tokenizer


class Written(NamedTuple):
    """How much was written: `tokens`, of so many `characters`."""

    tokens: int
    characters: int


@dataclass(frozen=True, eq=False)
class Windows:
    """A source whose example i is `tokens` (length,) int32 from place i · stride of a stream on.

    A language model of so much context reads windows of one token more: what it predicts from all
    of it is the last. Shuffled batches hold 4 bytes for each window in memory: of a stream that is
    larger than memory, take every `length`-th or so.

    Attributes:
        stream: (n,) integers, such as `read_stream` maps.
        length: tokens of a window.
        stride: tokens from the start of one to the start of the next.

    Raises:
        ValueError: an argument is out of range, or the stream is shorter than a window.

    Example:
        >>> windows = Windows(np.arange(10, dtype=np.uint16), length=4, stride=3)
        >>> len(windows), windows.read(np.array([2, 0]))["tokens"].tolist()
        (3, [[6, 7, 8, 9], [0, 1, 2, 3]])
    """

    stream: np.ndarray = field(repr=False)
    length: int
    stride: int = 1

    def __post_init__(self) -> None:
        for name, value in (("length", self.length), ("stride", self.stride)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.stream.ndim != 1 or not np.issubdtype(self.stream.dtype, np.integer):
            shape, dtype = self.stream.shape, self.stream.dtype
            raise ValueError(f"stream is {dtype} of shape {shape}; it must be integers of (n,)")
        if len(self.stream) < self.length:
            raise ValueError(
                f"stream has {len(self.stream):,} tokens; a window has length={self.length:,}"
            )

    def __len__(self) -> int:
        return (len(self.stream) - self.length) // self.stride + 1

    def read(self, index: np.ndarray) -> Examples:
        """Return the windows at (b,) integer positions, in that order."""
        stream = np.asarray(self.stream)  # as a plain array, if it is mapped
        windows = np.lib.stride_tricks.sliding_window_view(stream, self.length)
        return {"tokens": windows[np.asarray(index) * self.stride].astype(np.int32)}

    def whole(self) -> Examples:
        """Return what devices hold to cut windows from: the stream itself, of which each is a part.

        Raises:
            ValueError: the stream has more places than 32 bits can tell.
        """
        if len(self.stream) >= 2**31:
            raise ValueError(f"a stream of {len(self.stream):,} tokens has 2³¹ or more")
        return {"tokens": np.asarray(self.stream)}

    def cut(self, columns: Any, index: Any) -> Any:
        """Return the windows at (b,) int32 positions, of what `whole` returns, in JAX."""
        places = index[:, None] * self.stride + np.arange(self.length, dtype=np.int32)
        tokens = columns["tokens"].at[places].get(mode="promise_in_bounds")
        return {"tokens": tokens.astype(np.int32)}  # (n,) -> (b, length)


def text_stream(
    where: str | Path,
    *,
    kind: Kind = "bpe",
    vocabulary: int = 5000,
    special: Sequence[Special] | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    test: float = 0.1,
    data_dir: str | None = None,
) -> TextStream:
    """Open a text as two streams of tokens: one to train on, and one held out.

    Args:
        where: a file of UTF-8 text; a TFDS name, such as `tiny_shakespeare`; or a folder that
            `aigc tokenize` made, whose streams are mapped and not read: for texts larger than
            memory. What follows is of texts, not of such a folder.
        kind: of the tokenizer that is trained on the training split; the characters of `char` are
            those of both splits.
        vocabulary: how many tokens of `bpe` and `word`.
        special: as of `train_tokenizer`.
        tokenizer: one to take instead, or where `load_tokenizer` finds it.
        test: of the file, and of a TFDS set that has neither a validation nor a test split, the
            share that is held out: its end.
        data_dir: where TFDS prepared the set; by default `$TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`.

    Raises:
        FileNotFoundError: there is no such file, data set or folder.
        ValueError: an argument is out of range, the text is empty, not UTF-8, or has characters
            that the tokenizer does not, or a folder's files do not hold what they should.
    """
    if Path(where).is_dir():
        if tokenizer is not None:
            raise ValueError(f"{where} holds tokens, of its own tokenizer: no other can read them")
        return _open_folder(Path(where))
    corpus = open_text(where, test=test, data_dir=data_dir)
    if tokenizer is None:
        tokenizer = fit_tokenizer(corpus, kind=kind, vocabulary=vocabulary, special=special)
    elif not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(tokenizer)

    def encoded(documents: Documents) -> np.ndarray:
        return np.concatenate([tokens for tokens, _ in _encode(documents, tokenizer)])

    return TextStream(encoded(corpus.train()), encoded(corpus.test()), tokenizer)


def open_text(where: str | Path, *, test: float = 0.1, data_dir: str | None = None) -> Corpus:
    """Open a file or a TFDS set as documents, in bounded memory.

    A file is one document, divided by position. Of a TFDS set, `train` is trained on, and what
    there is of `validation` and `test`, in this order, is held out; where each of them is a single
    text, they are parts of one document.

    Args:
        where: as of `text_stream`, but no folder.
        test: likewise.
        data_dir: likewise.

    Raises:
        FileNotFoundError: there is no such file or data set.
        ValueError: `test` is out of range, or the file is not UTF-8 or too short.
    """
    if not 0 < test < 1:
        raise ValueError(f"test={test} must be between 0 and 1")
    path = Path(where)
    if path.is_file():
        count = _count(path)
        at = int(count * (1 - test))
        if not 0 < at < count:
            raise ValueError(f"{path} has {count} characters, too few for two splits")
        return Corpus(lambda: [_blocks(path, 0, at)], lambda: [_blocks(path, at, count)])
    if path.suffix == ".txt" or path.is_absolute():
        raise FileNotFoundError(f"there is no file {where}")

    splits = open_texts(str(where), data_dir)
    if "train" not in splits:
        raise ValueError(f"tfds name={where!r} needs the split train, has {list(splits)}")
    train, held_out = splits["train"], [splits[s] for s in ("validation", "test") if s in splits]
    if not held_out:
        count = len(train)
        at = int(count * (1 - test))
        if not 0 < at < count:
            raise ValueError(f"tfds name={where!r} has {count} texts, too few for two splits")
        return Corpus(lambda: _some(train, 0, at), lambda: _some(train, at, count))
    if all(len(split) == 1 for split in (train, *held_out)):
        return Corpus(lambda: train, lambda: [itertools.chain(*held_out)])
    return Corpus(lambda: train, lambda: itertools.chain(*held_out))


def fit_tokenizer(
    corpus: Corpus,
    *,
    kind: Kind = "bpe",
    vocabulary: int = 5000,
    special: Sequence[Special] | None = None,
) -> Tokenizer:
    """Train a tokenizer of running text on the training split.

    The characters of `char` are those of both splits: they are the alphabet, and not learnt.

    Raises:
        ValueError: as `train_tokenizer`.
    """
    documents = [corpus.train(), corpus.test()] if kind == "char" else [corpus.train()]
    blocks = itertools.chain(*map(_in_blocks, itertools.chain(*documents)))
    return train_tokenizer(blocks, kind=kind, vocabulary=vocabulary, special=special, prefix=False)


def write_stream(path: str | Path, texts: Documents, tokenizer: Tokenizer) -> Written:
    """Write texts as a stream of tokens, in memory that does not grow with them.

    The file is an .npy of (n,) uint16, or uint32 where the vocabulary needs it. The tokenizer's
    end, if it has one, separates the texts. A file of which the writing broke off holds no token.

    Args:
        path: of the file; one already there is replaced.
        texts: each a document, or the blocks of one.
        tokenizer: which encodes them.

    Raises:
        ValueError: a character has no token.
        OSError: the file cannot be written.
    """
    dtype = token_type(tokenizer)
    tokens = characters = 0
    with Path(path).open("wb") as file:
        _write_header(file, dtype, 0)
        for some, size in _encode(texts, tokenizer):
            file.write(some.tobytes())
            tokens, characters = tokens + len(some), characters + size
        file.seek(0)
        _write_header(file, dtype, tokens)  # NumPy's headers have room for their length to grow
    return Written(tokens, characters)


def read_stream(path: str | Path) -> np.ndarray:
    """Map a stream of tokens into memory, (n,) unsigned integers; nothing is read yet.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or no token.
    """
    try:
        stream = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {path}") from error
    except (ValueError, EOFError) as error:  # no header, or fewer tokens than it says
        raise ValueError(f"{path} is damaged, or not an .npy file of tokens: {error}") from error
    kind = getattr(stream, "dtype", np.dtype(object)).kind
    if kind != "u" or stream.ndim != 1 or not len(stream):
        shape = getattr(stream, "shape", None)
        raise ValueError(
            f"{path} holds {getattr(stream, 'dtype', 'arrays')} of shape {shape}; a stream of "
            "tokens is unsigned integers of (n,), at least one"
        )
    return stream


def token_type(tokenizer: Tokenizer) -> np.dtype:
    """Return the smallest type that holds a tokenizer's tokens, uint16 or uint32."""
    return np.dtype(np.uint16 if tokenizer.size <= 2**16 else np.uint32)


def pack(
    documents: Iterable[Sequence[int]], length: int, *, end: int | None = None, pad: int = 0
) -> Examples:
    """Pack documents into rows, each whole and beside others where they fit.

    The longest are placed first, each into the row with the least space that is enough (best fit).
    A document longer than a row is cut into pieces, each of which begins with the last token of the
    one before, so that every token but a document's first is predicted once.

    For attention to stay within a document, let a token attend to those of its own segment alone:
    `segment[:, :, None] == segment[:, None, :]`, beside the causal mask; and give the positions to
    the model in place of 0, 1, 2, ...

    Args:
        documents: tokens of each. Those with nothing to predict, of one token or none, are left
            out.
        length: tokens of a row, one more than the context of a language model; at least 2.
        end: the token that is put at the end of every document; None puts none.
        pad: the token that fills a row up.

    Returns:
        `tokens` (n, length) int32; `mask` (n, length) float32, the weight of each token as what is
        predicted, 0 for padding and for the first token of each piece, else 1; `segment` (n,
        length) int32, 1, 2, ... for the pieces in a row and 0 for padding; and `position` (n,
        length) int32, which counts from 0 within each piece.

    Raises:
        ValueError: `length` is too small, or no document is left.

    Example:
        >>> rows = pack([[5, 6], [7, 8, 9]], length=8, end=1)
        >>> rows["tokens"].tolist(), rows["segment"].tolist()
        ([[7, 8, 9, 1, 5, 6, 1, 0]], [[1, 1, 1, 1, 2, 2, 2, 0]])
        >>> rows["mask"].astype(int).tolist(), rows["position"].tolist()
        ([[0, 1, 1, 1, 0, 1, 1, 0]], [[0, 1, 2, 3, 0, 1, 2, 0]])
    """
    if length < 2:
        raise ValueError(f"length={length} must be at least 2, a token and what is predicted of it")
    last = [] if end is None else [end]
    parts: list[np.ndarray] = []
    for document in documents:
        whole = np.array([*document, *last], np.int32)
        starts = range(0, len(whole) - 1, length - 1)
        parts.extend(whole[start : start + length] for start in starts)
    if not parts:
        raise ValueError("no document has a token to predict: each has one token or none")
    parts.sort(key=len, reverse=True)

    rows: list[list[np.ndarray]] = []
    by_space: dict[int, list[int]] = {}  # space -> the rows that have so much left
    spaces: list[int] = []  # those there are, sorted
    for part in parts:
        if (at := bisect.bisect_left(spaces, len(part))) < len(spaces):
            space = spaces[at]
            row = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[at]
        else:
            space, row = length, len(rows)
            rows.append([])
        rows[row].append(part)
        if left := space - len(part):
            if left not in by_space:
                bisect.insort(spaces, left)
            by_space.setdefault(left, []).append(row)

    shape = len(rows), length
    tokens, mask = np.full(shape, pad, np.int32), np.zeros(shape, np.float32)
    segment, position = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, row in enumerate(rows):
        start = 0
        for number, part in enumerate(row, 1):
            stop = start + len(part)
            tokens[i, start:stop], segment[i, start:stop] = part, number
            mask[i, start + 1 : stop], position[i, start:stop] = 1, np.arange(len(part))
            start = stop
    return {"tokens": tokens, "mask": mask, "segment": segment, "position": position}


def bucket(prompts: Sequence[Sequence[int]], pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pad prompts on the left to the least power of two, 16 or more, that the longest fits.

    A program that was compiled for a bucket serves all prompts of it.

    Args:
        prompts: lists of tokens, of one or more each.
        pad: what stands before a prompt, a token of the vocabulary.

    Returns:
        tokens (b, t) int32, and the slots (b,) int32 where the prompts begin, as
        `samplers.autoregressive.generate` takes them.

    Raises:
        ValueError: there is no prompt, or an empty one.

    Example:
        >>> tokens, start = bucket([[5, 6, 7], [8]])
        >>> tokens[:, -4:].tolist(), start.tolist()
        ([[0, 5, 6, 7], [0, 0, 0, 8]], [13, 15])
    """
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or not min(lengths):
        raise ValueError(f"prompts of lengths {lengths}: there must be some, of 1 token or more")
    t = max(SHORTEST_BUCKET, 1 << (max(lengths) - 1).bit_length())
    tokens = np.full((len(prompts), t), pad, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[t - len(prompt) :] = prompt
    return tokens, np.array([t - length for length in lengths], np.int32)


def _open_folder(folder: Path) -> TextStream:
    for name in ("tokenizer.json", "train.npy", "test.npy"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}; aigc tokenize TEXT --out {folder} makes it"
            )
    tokenizer = load_tokenizer(folder)
    train, test = (read_stream(folder / f"{split}.npy") for split in ("train", "test"))
    for name, stream in (("train", train), ("test", test)):
        # To read all of it, to find what nobody should have written, may take minutes.
        if (most := int(stream[:BLOCK].max())) >= tokenizer.size:
            raise ValueError(
                f"{folder / name}.npy holds the token {most}, and {folder}'s tokenizer has "
                f"{tokenizer.size}: they are not of one making"
            )
    return TextStream(train, test, tokenizer)


def _encode(documents: Documents, tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (n,) tokens, some at a time, and of how many characters they are."""
    dtype, end = token_type(tokenizer), tokenizer.end
    blocks: list[str] = []
    breaks: list[bool] = []  # whether the end of another document stands before the block

    def flush() -> tuple[np.ndarray, int]:
        rows = tokenizer.encode_batch(blocks)
        ended = ([end, *row] if new else row for new, row in zip(breaks, rows, strict=True))
        tokens = np.fromiter(itertools.chain.from_iterable(ended), dtype)
        size = sum(map(len, blocks))
        blocks.clear()
        breaks.clear()
        return tokens, size

    held = 0
    for i, document in enumerate(documents):
        new = i > 0 and end is not None
        for block in _in_blocks(document):
            blocks.append(block)
            breaks.append(new)
            new, held = False, held + len(block)
            if held >= BLOCK:
                yield flush()
                held = 0
    yield flush()


def _in_blocks(document: str | Iterable[str]) -> Iterable[str]:
    return [document] if isinstance(document, str) else document


def _some(texts: Texts, start: int, stop: int) -> Iterator[str]:
    return map(texts.__getitem__, range(start, stop))


def _count(path: Path) -> int:
    """Return how many characters a file has."""
    try:
        with path.open(encoding="utf-8") as file:
            return sum(map(len, iter(functools.partial(file.read, BLOCK), "")))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _blocks(path: Path, start: int, stop: int) -> Iterator[str]:
    """Yield the characters of a file from one place to another, cut where tokens are not."""
    with path.open(encoding="utf-8") as file:
        for place in range(0, start, BLOCK):
            file.read(min(BLOCK, start - place))
        rest, left = "", stop - start
        while left and (block := file.read(min(BLOCK, left))):
            left -= len(block)
            *whole, rest = pieces(rest + block)
            yield from whole
        yield rest


def _write_header(file: Any, dtype: np.dtype, count: int) -> None:
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)

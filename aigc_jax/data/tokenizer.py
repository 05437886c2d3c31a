"""Tokenizers: text to tokens and back, trained here or read from Hugging Face's files."""

import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

Kind = Literal["bpe", "word", "char", "byte"]
Special = Literal["pad", "start", "end", "unk", "mask"]

ALPHABET = 256  # bytes: with a token for each, there is nothing that BPE cannot write
PIECE = 2**16  # characters that are encoded at once; more are shared out over the cores
LINE: tuple[Special, ...] = ("pad", "start", "end", "unk")
SPECIAL: dict[Kind, tuple[Special, ...]] = {"bpe": LINE, "word": LINE, "char": (), "byte": ()}

# How others call the special tokens, and under which keys their configurations name them.
USUAL: dict[Special, tuple[str, ...]] = {
    "pad": ("<pad>", "[PAD]"),
    # GPT-2's one special token both ends a text and, where there is nothing before it, starts one.
    "start": ("<start>", "<s>", "[CLS]", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "end": ("<end>", "</s>", "[SEP]", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
}
KEYS: dict[Special, tuple[str, ...]] = {
    "pad": ("pad_token",),
    "start": ("bos_token", "cls_token"),
    "end": ("eos_token", "sep_token"),
    "unk": ("unk_token",),
    "mask": ("mask_token",),
}


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to tokens and back; made by `train_tokenizer` or `load_tokenizer`.

    A text is data: one that says `<end>` does not end there, unless it is encoded as `special`.

    Attributes:
        inner: the `tokenizers.Tokenizer`.
        pad: the token that fills an array up; None where there is no such token, as of the others.
        start: the one that stands before a text.
        end: the one that ends it, or separates it from the next.
        unk: the one for what is not in the vocabulary.
        mask: the one that hides another.
    """

    inner: Any = field(repr=False)
    pad: int | None = None
    start: int | None = None
    end: int | None = None
    unk: int | None = None
    mask: int | None = None

    @functools.cached_property
    def size(self) -> int:
        """How many tokens there are, the special ones included: each is below it."""
        return 1 + max(self.inner.get_vocab(with_added_tokens=True).values(), default=-1)

    def special(self, *names: Special) -> tuple[int, ...]:
        """Return special tokens by name, for what cannot do without them.

        Raises:
            ValueError: there is no such token.

        Example:
            >>> train_tokenizer(["to be"], kind="word", vocabulary=6).special("end", "pad")
            (2, 0)
        """
        found = {name: getattr(self, name) for name in get_args(Special)}
        if missing := [name for name in names if found[name] is None]:
            there = ", ".join(name for name in found if found[name] is not None) or "none"
            raise ValueError(
                f"this needs a tokenizer with the special tokens {', '.join(names)}; "
                f"{', '.join(missing)} is missing, there is {there}"
            )
        return tuple(found[name] for name in names)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the tokens of a text, the start and the end not among them.

        Args:
            text: of any length.
            special: read the names of special tokens within the text, such as `[MASK]`, as these
                tokens; by default they are text like any other.

        Raises:
            ValueError: a character has no token, and there is none for what is unknown.
        """
        return self.encode_batch([text], special=special)[0]

    def encode_batch(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Return the tokens of each text, as `encode` does, on all cores."""
        if self._characters is not None and self.unk is None:
            for text in texts:
                _refuse_unknown(text, self._characters)
        cut = [list(pieces(text)) for text in texts]
        inner = self._reading if special else self.inner
        try:
            encoded = inner.encode_batch_fast(list(itertools.chain(*cut)), add_special_tokens=False)
        except Exception as error:  # the library has no narrower class
            raise ValueError(f"the tokenizer cannot encode this text: {error}") from error
        ids = iter(encoded)
        return [list(itertools.chain(*(next(ids).ids for _ in parts))) for parts in cut]

    def decode(self, tokens: Any) -> str:
        """Return the text of (t,) tokens, from behind a start to before the first end or padding.

        Raises:
            ValueError: the tokens have another shape, or are not in the vocabulary.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 1:
            raise ValueError(f"tokens has shape {tokens.shape}; a text's are (t,)")
        if not tokens.size:
            return ""
        if tokens.min() < 0 or tokens.max() >= self.size:
            low, high = tokens.min(), tokens.max()
            raise ValueError(f"tokens go from {low} to {high}; there are only 0 to {self.size - 1}")
        if tokens[0] == self.start:
            tokens = tokens[1:]
        stops = [token for token in (self.end, self.pad) if token is not None]
        stop = np.flatnonzero(np.isin(tokens, stops))
        tokens = tokens[: stop[0]] if stop.size else tokens
        return self.inner.decode(tokens.tolist(), skip_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer into a folder, for `load_tokenizer` and for Hugging Face's libraries.

        These are `tokenizer.json`, and `tokenizer_config.json`, which names the special tokens.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        for name, keys in KEYS.items():
            if (token := getattr(self, name)) is not None:
                said = self.inner.id_to_token(token)
                config[keys[-1] if said in ("[CLS]", "[SEP]") else keys[0]] = said
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (folder / "tokenizer.json").write_text(self.to_json(), "utf-8")

    def to_json(self) -> str:
        """Return what `tokenizer.json` holds."""
        return self.inner.to_str(pretty=True) + "\n"

    @functools.cached_property
    def _reading(self) -> Any:
        """The same, but that it reads special tokens; to switch `inner` over would race."""
        reading = type(self.inner).from_str(self.inner.to_str())
        reading.encode_special_tokens = False
        return reading

    @functools.cached_property
    def _characters(self) -> frozenset[str] | None:
        """The characters, if these are the tokens."""
        special = {getattr(self, name) for name in get_args(Special)}
        vocabulary = self.inner.get_vocab(with_added_tokens=True)
        letters = frozenset(word for word, token in vocabulary.items() if token not in special)
        single = self.inner.pre_tokenizer is None and all(len(word) == 1 for word in letters)
        return letters if single else None


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: Kind = "bpe",
    vocabulary: int = 2000,
    special: Sequence[Special] | None = None,
    prefix: bool = True,
) -> Tokenizer:
    """Train a tokenizer; the same texts give the same one.

    Words carry the space before them, so that decoding gives back the text, spaces and all.

    Args:
        texts: what it learns from: the training split alone.
        kind: `bpe`, pieces of words down to bytes (Sennrich et al. 2016), which leave nothing
            unknown; `word`, words and marks, the most frequent; `char`, the characters that occur,
            sorted; or `byte`, the 256 bytes of UTF-8.
        vocabulary: how many tokens of `bpe` and `word`, the special ones included; fewer, if the
            texts have no more to give. There are as many characters and bytes as there are.
        special: the special tokens, numbered from 0 in this order: some of `pad`, `start`, `end`,
            `unk` and `mask`; by default the first four of `bpe` and `word`, and none of `char` and
            `byte`.
        prefix: `bpe` and `word` read a text as if a space stood before it, so that its first word
            is the token that it is anywhere else. Running text, cut anywhere, goes without.

    Raises:
        ValueError: `kind` or `special` is unknown, `word` is to do without `unk`, `vocabulary` is
            too small for the special tokens and, of `bpe`, the 256 bytes, or there is no character.

    Example:
        >>> tokenizer = train_tokenizer(["to be, or not to be"], kind="word", vocabulary=9)
        >>> tokenizer.encode("to be not"), tokenizer.decode(tokenizer.encode("not to see, or"))
        ([5, 4, 7], 'not to <unk>, or')
        >>> train_tokenizer(["hello"], kind="char").encode("hole")
        [1, 3, 2, 0]
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Inner

    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} must be one of {', '.join(map(repr, get_args(Kind)))}")
    names = SPECIAL[kind] if special is None else tuple(special)
    if not set(names) <= set(get_args(Special)) or len(set(names)) < len(names):
        raise ValueError(f"special={names} must be different ones of {get_args(Special)}")
    if kind == "word" and "unk" not in names:
        raise ValueError(
            f"special={names} must have 'unk' for kind='word': not every word is known"
        )
    marks = [f"<{name}>" for name in names]
    least = len(names) + {"bpe": ALPHABET, "word": "unk" in names}.get(kind, 0)
    if kind in ("bpe", "word") and vocabulary < least:
        raise ValueError(f"vocabulary={vocabulary} must be at least {least} for kind={kind!r}")

    unk = {"unk_token": "<unk>"} if "unk" in names else {}
    if kind in ("char", "byte"):
        letters = sorted(set().union(*texts)) if kind == "char" else _bytes()
        if not letters:
            raise ValueError("texts have no character")
        # BPE that merges nothing: what is not a token is unknown, one character at a time.
        known = {word: token for token, word in enumerate([*marks, *letters])}
        inner = Inner(models.BPE(vocab=known, merges=[], **(unk if kind == "char" else {})))
        inner.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
        if kind == "char":
            inner.decoder = decoders.Fuse()
        else:
            inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            inner.decoder = decoders.ByteLevel()
    else:
        common: dict[str, Any] = {
            "vocab_size": vocabulary,
            "special_tokens": marks,
            "show_progress": False,
        }
        if kind == "bpe":
            inner = Inner(models.BPE())
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **common)
        else:
            inner = Inner(models.WordLevel(**unk))
            trainer = trainers.WordLevelTrainer(**common)
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        decoder: list[Any] = [decoders.ByteLevel()]
        if unk:  # a word has its space in it, which is lost if the word is not known
            decoder.insert(0, decoders.Replace("<unk>", "Ġ<unk>"))
        if prefix:
            decoder.append(decoders.Strip(" ", left=1, right=0))
        inner.decoder = decoders.Sequence(decoder)
        inner.train_from_iterator(texts, trainer)
    inner.encode_special_tokens = True
    return Tokenizer(inner, **{name: token for token, name in enumerate(names)})


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer that `Tokenizer.save` or Hugging Face's libraries wrote.

    A folder may hold `tokenizer.json`; or GPT-2's older `vocab.json` and `merges.txt`; or BERT's
    older `vocab.txt`. Special tokens are those that `tokenizer_config.json` or
    `special_tokens_map.json` name, else those of the usual names: `<|endoftext|>`, `[CLS]`,
    `[SEP]`, `[PAD]`, `[MASK]`, `[UNK]`, `<s>`, `</s>`, `<pad>`, …

    Args:
        path: a folder, or a `tokenizer.json`.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: a file holds something else than its name says; names it.
    """
    from tokenizers import Tokenizer as Inner

    path = Path(path)
    folder = path if path.is_dir() else path.parent
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file():
        try:
            inner = Inner.from_file(str(file))
        except Exception as error:  # the library has no narrower class
            raise ValueError(
                f"{file} is not a tokenizer.json of Hugging Face's tokenizers: {error}"
            ) from error
        # A stream is neither cut nor filled up, however the model of this tokenizer was trained.
        inner.no_truncation()
        inner.no_padding()
    elif not path.is_dir():
        raise FileNotFoundError(f"there is no tokenizer {path}: neither a folder nor a file")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        inner = _gpt2(folder)
    elif (folder / "vocab.txt").is_file():
        inner = _bert(folder)
    else:
        raise FileNotFoundError(
            f"{folder} holds no tokenizer: neither tokenizer.json, nor vocab.json and merges.txt, "
            "nor vocab.txt"
        )
    inner.encode_special_tokens = True
    config = _config(folder)
    found: dict[str, int] = {}
    for name, usual in USUAL.items():
        said = (config.get(key) for key in KEYS[name])
        # A token is written as itself, or with how it takes the spaces around it.
        words = (word["content"] if isinstance(word, dict) else word for word in said)
        for word in (*words, *usual):
            if isinstance(word, str) and (token := inner.token_to_id(word)) is not None:
                found.setdefault(name, token)
    return Tokenizer(inner, **found)


def pieces(text: str, most: int = PIECE) -> Iterator[str]:
    """Cut a text into pieces whose tokens, one after another, are those of the whole.

    It is cut before a space that follows something else, where no tokenizer that takes words with
    the space before them, or without, joins anything. A piece that has no such space is cut
    anywhere.

    Args:
        text: of any length.
        most: characters of a piece, at least 1.

    Example:
        >>> list(pieces("to be, or  not", 7))
        ['to be,', ' or', '  not']
    """
    start = 0
    while len(text) - start > most:
        stop = start + most + 1
        while (stop := text.rfind(" ", start + 1, stop)) > 0 and text[stop - 1].isspace():
            pass
        stop = stop if stop > 0 else start + most
        yield text[start:stop]
        start = stop
    yield text[start:]


def _bytes() -> list[str]:
    """Return the characters that stand for the bytes 0 to 255 in the library."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Printable ones stand for themselves, and those behind Latin-1 for the others, in order.
    others = iter(letter for letter in letters if ord(letter) > 255)
    return [chr(byte) if chr(byte) in letters else next(others) for byte in range(ALPHABET)]


def _refuse_unknown(text: str, characters: frozenset[str]) -> None:
    if unknown := set(text) - characters:
        place = min(map(text.index, unknown))
        begin = text[:20] + "…" * (len(text) > 20)
        raise ValueError(
            f"the tokenizer has no token for {text[place]!r}, character {place} of {begin!r}; it "
            f"knows {len(characters)} characters"
        )


def _gpt2(folder: Path) -> Any:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    files = [str(folder / name) for name in ("vocab.json", "merges.txt")]
    try:
        inner = Inner(models.BPE.from_file(*files))
    except Exception as error:
        raise ValueError(
            f"{files[0]} and {files[1]} are not the tokens of GPT-2 and what makes them: {error}"
        ) from error
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    _mark(inner)
    return inner


def _bert(folder: Path) -> Any:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    file = folder / "vocab.txt"
    try:
        inner = Inner(models.WordPiece.from_file(str(file), unk_token="[UNK]"))
    except Exception as error:
        raise ValueError(f"{file} is not BERT's list of tokens: {error}") from error
    known = inner.get_vocab()
    if missing := {"[UNK]", "[CLS]", "[SEP]"} - known.keys():
        raise ValueError(f"{file} is not BERT's list of tokens: it has no {', '.join(missing)}")
    # Where nobody says it, a list with capitals tells that the text keeps its own.
    cased = any(word != word.lower() for word in known if not word.startswith("["))
    lower = _config(folder).get("do_lower_case", not cased)
    inner.normalizer = normalizers.BertNormalizer(lowercase=lower)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    ends = [(word, known[word]) for word in ("[SEP]", "[CLS]")]
    inner.post_processor = processors.BertProcessing(*ends)  # for others, who add both of them
    _mark(inner)
    return inner


def _mark(inner: Any) -> None:
    """Tell which tokens are special, where a list of words does not."""
    from tokenizers import AddedToken

    usual = dict.fromkeys(itertools.chain(*USUAL.values()))
    there = [word for word in usual if inner.token_to_id(word) is not None]
    inner.add_special_tokens([AddedToken(word, special=True) for word in there])


def _config(folder: Path) -> dict[str, Any]:
    """Return what a folder says of its tokenizer, besides the tokens."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (file := folder / name).is_file():
            try:
                said = json.loads(file.read_text("utf-8"))
            except ValueError as error:  # of JSON or of UTF-8
                raise ValueError(f"{file} is not JSON: {error}") from error
            if not isinstance(said, dict):
                raise ValueError(f"{file} holds a {type(said).__name__}, not names and values")
            config |= said
    return config

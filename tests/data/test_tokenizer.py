import functools
import itertools
import json
import re

import numpy as np
import pytest

from aigc_jax.data.tokenizer import Tokenizer, load_tokenizer, pieces, train_tokenizer

PLAY = [f"Line {'x' * (i % 3)} of {['four', 'five', 'six'][i % 3]}, number {i}." for i in range(40)]
STRANGE = "  Zoë, <end> 7\t\N{SNOWMAN}\n\n \U0001f600 a  b "
KINDS = ("bpe", "word", "char", "byte")
MARKS = ("pad", "start", "end", "unk", "mask")


@functools.cache
def tokenizer(kind="bpe", special=None, prefix=True):
    return train_tokenizer(PLAY, kind=kind, vocabulary=300, special=special, prefix=prefix)


def same(one, two, texts):
    assert one.to_json() == two.to_json()
    assert [getattr(one, name) for name in MARKS] == [getattr(two, name) for name in MARKS]
    assert one.encode_batch(texts) == two.encode_batch(texts)


@pytest.mark.parametrize("special", [None, ("pad", "start", "end", "unk")])
@pytest.mark.parametrize("kind", KINDS)
def test_training_texts_survive_the_way_there_and_back(kind, special):
    t = tokenizer(kind, special)
    encoded = t.encode_batch(PLAY)
    assert encoded == [t.encode(line) for line in PLAY]
    assert [t.decode(tokens) for tokens in encoded] == PLAY
    marks = {getattr(t, name) for name in MARKS} - {None}
    assert len(marks) == 4 * (special is not None or kind in ("bpe", "word"))
    assert not marks & {token for tokens in encoded for token in tokens}


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_pieces_and_bytes_write_anything(kind, prefix):
    t = tokenizer(kind, ("end",), prefix)
    assert t.decode(t.encode(STRANGE)) == (STRANGE[prefix and kind == "bpe" :])
    assert t.decode(t.encode(STRANGE.strip())) == STRANGE.strip()


def test_words_mark_what_they_do_not_know():
    t = tokenizer("word")
    assert t.decode(t.encode("Line of seven, ten.")) == "Line of <unk>, <unk>."
    assert t.decode([t.unk, t.unk]) == "<unk> <unk>"


def test_characters_are_sorted_and_bytes_are_themselves():
    t = train_tokenizer(["hello\n", "world"], kind="char")
    assert (t.size, t.encode("\ndehlorw")) == (8, list(range(8)))
    assert t.decode([0, 7, 0]) == "\nw\n"
    text = "aÿ\x00ß\U0001f600"
    assert tokenizer("byte").encode(text) == list(text.encode())
    assert tokenizer("byte").size == 256
    shifted = tokenizer("byte", ("end", "mask"))
    assert shifted.encode(text) == [byte + 2 for byte in text.encode()]
    assert (shifted.end, shifted.mask, shifted.size) == (0, 1, 258)


def test_a_character_without_a_token_is_named_with_its_place():
    t = train_tokenizer(["abc "], kind="char")
    with pytest.raises(
        ValueError,
        match=r"^the tokenizer has no token for 'é', character 5 of 'aab cé z'; it knows 4 cha",
    ):
        t.encode("aab cé z")
    with pytest.raises(
        ValueError, match=r"no token for 'd', character 30 of 'aaaaaaaaaaaaaaaaaaaa…'"
    ):
        t.encode_batch(["abc", "a" * 30 + "d"])
    t = train_tokenizer(["abc "], kind="char", special=("unk",))
    assert t.encode("aéb") == [2, 0, 3] and t.decode([2, 0, 3]) == "a<unk>b"


def test_the_same_texts_train_the_same_tokenizer():
    for kind in KINDS:
        same(train_tokenizer(iter(PLAY), kind=kind, vocabulary=300), tokenizer(kind), PLAY)


def test_special_tokens_are_numbered_as_given_and_asked_for_by_name():
    t = tokenizer()
    assert [t.inner.id_to_token(i) for i in (t.pad, t.start, t.end, t.unk)] == [
        "<pad>",
        "<start>",
        "<end>",
        "<unk>",
    ]
    assert t.mask is None and t.size == 300 > tokenizer("word").size
    t = tokenizer("char", ("mask", "end"))
    assert t.special("end", "mask") == (1, 0)
    with pytest.raises(
        ValueError, match=r"special tokens end, pad; pad is missing, there is end, mask$"
    ):
        t.special("end", "pad")
    with pytest.raises(ValueError, match=r"pad is missing, there is none$"):
        tokenizer("char").special("pad")


def test_names_of_special_tokens_are_text_unless_they_are_asked_for():
    for kind in ("bpe", "byte"):
        t = tokenizer(kind, ("end", "mask"), prefix=False)
        assert not {t.mask, t.end} & set(t.encode("of <mask><end>"))
        assert t.decode(t.encode("of <mask><end>")) == "of <mask><end>"
        *of, hidden, end = t.encode("of <mask><end>", special=True)
        assert (hidden, end, t.decode(of)) == (t.mask, t.end, "of ")
        assert not {t.mask, t.end} & set(t.encode("of <mask><end>"))


def test_decoding_begins_behind_a_start_and_stops_at_the_end_or_at_padding():
    t = tokenizer("word")
    line, of = t.encode("Line of")
    assert t.decode([line, of, t.end, line]) == "Line of"
    assert t.decode(np.array([line, t.pad, of])) == "Line"
    assert t.decode([t.start, line, of]) == "Line of"
    assert t.decode([]) == t.decode([t.start]) == t.decode([t.end, line]) == ""
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 2\)"):
        t.decode([[line, of]])
    with pytest.raises(ValueError, match=rf"^tokens go from 4 to {t.size}; there are only 0 to "):
        t.decode([4, t.size])
    with pytest.raises(ValueError, match=r"^tokens go from -1 to 4"):
        t.decode([-1, 4])


def test_a_long_text_is_cut_where_its_tokens_are_not():
    rng = np.random.default_rng(0)
    words = np.array(["Line", "of", "x,", "x,  ", "\n\nfour", " ", "number.\n", "17"])
    text = " ".join(rng.choice(words, 400))
    for most in (7, 20, 64):
        cut = list(pieces(text, most))
        assert "".join(cut) == text and max(map(len, cut)) <= most
    for kind in KINDS:
        t = tokenizer(kind, ("unk",), prefix=False)
        parts = t.encode_batch(list(pieces(text, 30)))
        assert list(itertools.chain(*parts)) == t.encode(text)
    assert list(pieces("", 3)) == [""]
    assert list(pieces("abcdefg", 3)) == ["abc", "def", "g"]
    long = "to be or not " * 20_000
    assert tokenizer("byte").encode(long) == list(long.encode())


@pytest.mark.parametrize("special", [None, MARKS])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_loaded_as_it_was(tmp_path, kind, special):
    t = tokenizer(kind, special)
    t.save(tmp_path / "a" / "b")
    texts = [*PLAY, "of <end><mask>"] if kind in ("bpe", "byte") else PLAY
    for path in ("a/b", "a/b/tokenizer.json"):
        same(load_tokenizer(tmp_path / path), t, texts)


# What others wrote


def test_special_tokens_are_those_the_configuration_names_or_the_usual_ones(tmp_path):
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "<s>", "stop"]
    inner = train_tokenizer(["a"], kind="char", special=()).inner
    inner.add_special_tokens(words)
    inner.enable_truncation(3)
    inner.enable_padding(length=5)
    inner.save(str(tmp_path / "tokenizer.json"))
    t = load_tokenizer(tmp_path)
    named = lambda t: [None if i is None else t.inner.id_to_token(i) for i in t_ids(t)]
    t_ids = lambda t: [getattr(t, name) for name in MARKS]
    assert named(t) == ["[PAD]", "<s>", "[SEP]", "[UNK]", "[MASK]"]
    assert t.encode("aaaaaaa") == [0] * 7
    config = {"bos_token": None, "cls_token": {"content": "[CLS]"}, "eos_token": "stop"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<none>"}))
    assert named(load_tokenizer(tmp_path)) == ["[PAD]", "[CLS]", "stop", "[UNK]", "[MASK]"]
    t = load_tokenizer(tmp_path)
    t.save(tmp_path / "again")
    assert t_ids(load_tokenizer(tmp_path / "again")) == t_ids(t)


def write_gpt2(folder):
    """The files of a GPT-2 of few merges: those of our own BPE, in their older form."""
    said = json.loads(tokenizer("bpe", (), prefix=False).to_json())["model"]
    vocabulary = said["vocab"] | {"<|endoftext|>": len(said["vocab"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in said["merges"])]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")


def test_the_older_files_of_gpt2_are_read(tmp_path):
    write_gpt2(tmp_path)
    t, ours = load_tokenizer(tmp_path), tokenizer("bpe", (), prefix=False)
    assert t.size == ours.size + 1 and t.end == t.start == ours.size and t.pad is t.mask is None
    assert t.encode_batch([*PLAY, STRANGE]) == ours.encode_batch([*PLAY, STRANGE])
    assert t.decode([t.start, *t.encode(STRANGE), t.end]) == STRANGE
    assert t.encode("of<|endoftext|>", special=True) == [*ours.encode("of"), t.end]
    assert t.end not in t.encode("of<|endoftext|>")
    t.save(tmp_path / "new")
    same(load_tokenizer(tmp_path / "new"), t, PLAY)


BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "to", "be", "##e", "##s", ",", "not"]


def write_bert(folder, extra=()):
    (folder / "vocab.txt").write_text("\n".join([*BERT, *extra]) + "\n")


def test_the_older_file_of_bert_is_read(tmp_path):
    write_bert(tmp_path)
    t = load_tokenizer(tmp_path)
    assert [getattr(t, name) for name in MARKS] == [0, 2, 3, 1, 4]
    assert t.encode("To bees,NOT  that") == [5, 6, 7, 8, 9, 10, 1]
    assert t.encode("to [MASK].", special=True) == [5, 4, 1]
    assert t.decode([2, 5, 6, 7, 8, 3, 0, 0]) == "to bees"
    write_bert(tmp_path, ["To"])
    assert load_tokenizer(tmp_path).encode("To NOT not") == [11, 1, 10]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert load_tokenizer(tmp_path).encode("To NOT not") == [5, 10, 10]


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "{} holds no tokenizer: neither tokenizer.json, nor vocab.json"),
        ({"vocab.json": "{}"}, FileNotFoundError, "{} holds no tokenizer: neither"),
        ({"tokenizer.json": "{"}, ValueError, "{}/tokenizer.json is not a tokenizer.json of Hugg"),
        ({"tokenizer.json": '{"a": 1}'}, ValueError, "{}/tokenizer.json is not a tokenizer.json"),
        (
            {"vocab.json": "[]", "merges.txt": "a b"},
            ValueError,
            "{}/vocab.json and {}/merges.txt are not the tokens of GPT-2",
        ),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "a b\n"},
            ValueError,
            "{}/vocab.json and {}/merges.txt are not the tokens of GPT-2",
        ),
        (
            {"vocab.txt": "to\nbe\n"},
            ValueError,
            "{}/vocab.txt is not BERT's list of tokens: it has",
        ),
        (
            {"vocab.txt": "\n".join(BERT), "tokenizer_config.json": "{"},
            ValueError,
            "{}/tokenizer_config.json is not JSON",
        ),
        (
            {"vocab.txt": "\n".join(BERT), "special_tokens_map.json": "[]"},
            ValueError,
            "{}/special_tokens_map.json holds a list",
        ),
    ],
)
def test_what_is_no_tokenizer_is_told_in_one_line(tmp_path, files, error, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    expected = re.escape(message.replace("{}", str(tmp_path)))
    with pytest.raises(error, match=f"^{expected}") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_path_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no tokenizer .*lost: neither a folder"):
        load_tokenizer(tmp_path / "lost")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "line"}, r"^kind='line' must be one of 'bpe', 'word', 'char', 'byte'$"),
        ({"vocabulary": 259}, r"^vocabulary=259 must be at least 260 for kind='bpe'$"),
        ({"kind": "word", "vocabulary": 4}, r"^vocabulary=4 must be at least 5 for kind='word'$"),
        ({"kind": "word", "special": ["end"]}, r"^special=\('end',\) must have 'unk'"),
        ({"special": ["stop"]}, r"^special=\('stop',\) must be different ones of \('pad', "),
        ({"special": ["end", "end"]}, r"^special=\('end', 'end'\) must be different ones"),
        ({"kind": "char", "texts": ["", ""]}, r"^texts have no character$"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(**{"texts": PLAY, **arguments})


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_is_saved(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    t = tokenizer(kind, MARKS, prefix=False)
    t.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [*PLAY, STRANGE.replace("<end>", "")] if kind in ("bpe", "byte") else PLAY
    assert theirs(texts, add_special_tokens=False)["input_ids"] == t.encode_batch(texts)
    assert [theirs.decode(each) for each in t.encode_batch(texts)] == texts
    assert len(theirs) == t.size
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "mask_token_id"):
        ours = {"bos": t.start, "eos": t.end, "pad": t.pad, "unk": t.unk, "mask": t.mask}
        assert getattr(theirs, name) == ours[name[:3] if name[:4] != "mask" else "mask"]


@pytest.mark.parity
@pytest.mark.parametrize("which", ["gpt2", "bert"])
def test_what_transformers_saves_is_read(tmp_path, which):
    transformers = pytest.importorskip("transformers")
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    texts = [*PLAY, STRANGE.replace("<end>", ""), "to be, not be", "TO BEES"]
    if which == "gpt2":
        write_gpt2(old)
        theirs = transformers.GPT2TokenizerFast.from_pretrained(old)
    else:
        write_bert(old)
        theirs = transformers.BertTokenizerFast.from_pretrained(old)
    theirs.save_pretrained(new)
    for folder in (old, new):
        t = load_tokenizer(folder)
        assert isinstance(t, Tokenizer)
        assert t.encode_batch(texts) == theirs(texts, add_special_tokens=False)["input_ids"]
        ids = theirs.pad_token_id, theirs.bos_token_id or theirs.cls_token_id
        assert (t.pad, t.start) == ids
        assert t.end == (theirs.eos_token_id or theirs.sep_token_id)
        assert t.mask == theirs.mask_token_id

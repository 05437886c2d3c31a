"""`aigc tokenize` as its user meets it: what it writes and prints, how it fails."""

import json
import re

import numpy as np
import pytest

from aigc_jax.cli import main
from aigc_jax.data.tokenizer import load_tokenizer
from aigc_jax.data.tokens import text_stream

PLAY = "".join(f"SPEAKER {i}:\nLine {'x' * (i % 3)} of  four.\n\n" for i in range(60))
FILES = {"tokenizer.json", "tokenizer_config.json", "train.npy", "test.npy"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "play.txt").write_text(PLAY, "utf-8")
    return tmp_path


@pytest.fixture
def fails(capsys):
    """Run a command that must fail in one line; give what that line says."""

    def run(*words, code=2):
        capsys.readouterr()  # what earlier commands said
        assert main(["tokenize", *words]) == code
        said = capsys.readouterr()
        assert said.out == "" and "Traceback" not in said.err
        last = said.err.splitlines()[-1]
        assert last.startswith("aigc: error: ")
        return last.removeprefix("aigc: error: ")

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("kind", "size"), [("bpe", 300), ("word", None), ("char", None), ("byte", 256)]
)
def test_a_text_becomes_streams_and_a_table_says_which(here, capsys, kind, size):
    words = ["tokenize", "play.txt", "--kind", kind, "--vocabulary", "300", "--out", "made"]
    assert main(words) == 0
    first, said = contents(here / "made"), capsys.readouterr().out
    assert set(first) == FILES
    train, test, t = text_stream("made")
    at = int(len(PLAY) * 0.9)
    assert t.encode(PLAY[:at]) == train.tolist() and t.encode(PLAY[at:]) == test.tolist()
    assert t.size == (size or t.size)
    for name, stream, length in (("train", train, at), ("test", test, len(PLAY) - at)):
        each = f"{length / len(stream):.2f}"
        row = rf"^ *{name} +{len(stream):,} +{re.escape(each)} +made/{name}\.npy$"
        assert re.search(row, said, re.MULTILINE)
    assert re.search(rf"^ *vocabulary +{t.size:,} +made/tokenizer\.json$", said, re.MULTILINE)
    # The same command again changes nothing.
    assert main(words) == 0
    assert contents(here / "made") == first and capsys.readouterr().out == said


def test_special_tokens_and_the_share_held_out_can_be_given(here):
    options = ["--special", "mask", "end", "--test", "0.5", "--kind", "char"]
    assert main(["tokenize", "play.txt", "--out", "made", *options]) == 0
    train, test, t = text_stream("made")
    assert (t.mask, t.end, t.pad) == (0, 1, None) and len(train) == len(test) == len(PLAY) // 2


def test_an_existing_tokenizer_is_taken(here, capsys, fails):
    assert main(["tokenize", "play.txt", "--kind", "char", "--out", "first"]) == 0
    capsys.readouterr()
    (here / "short.txt").write_text(PLAY[:300])
    for source, out in (("first", "a"), ("first/tokenizer.json", "b")):
        words = ["short.txt", "--tokenizer", source, "--out", out]
        assert main(["tokenize", *words]) == 0
        assert "training" not in capsys.readouterr().err
        assert load_tokenizer(out).to_json() == load_tokenizer("first").to_json()
        assert np.load(f"{out}/train.npy").tolist() == load_tokenizer("first").encode(PLAY[:270])
    # A folder that somebody else made may be where the streams go, and stays as it is.
    made = here / "first"
    text = json.dumps(json.loads((made / "tokenizer.json").read_text()))
    (made / "tokenizer.json").write_text(text)
    (made / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    assert main(["tokenize", "play.txt", "--tokenizer", "first", "--out", "first"]) == 0
    assert (made / "tokenizer.json").read_text() == text
    assert (made / "tokenizer_config.json").read_text() == '{"model_max_length": 512}'


def test_what_is_there_is_not_overwritten(here, fails):
    words = ["--kind", "char", "--out", "made"]
    assert main(["tokenize", "play.txt", *words]) == 0
    before = contents(here / "made")
    said = fails("play.txt", "--kind", "byte", "--out", "made")
    assert said == "made holds another tokenizer; give another directory to --out"
    (here / "other.txt").write_text(PLAY[::-1], "utf-8")
    said = fails("other.txt", *words)
    assert said == "made/train.npy holds other tokens; give another directory to --out"
    assert contents(here / "made") == before


def test_what_broke_off_is_finished(here):
    words = ["tokenize", "play.txt", "--kind", "char", "--out", "made"]
    assert main(words) == 0
    before = contents(here / "made")
    (here / "made" / "test.npy").unlink()
    assert main(words) == 0
    assert contents(here / "made") == before


def test_a_tokenizer_that_does_not_know_a_character_leaves_no_part_of_a_stream(here, fails):
    (here / "few.txt").write_text("abc" * 10)
    assert main(["tokenize", "few.txt", "--kind", "char", "--out", "few"]) == 0
    said = fails("play.txt", "--tokenizer", "few", "--out", "made")
    assert said.startswith("the tokenizer has no token for 'S', character 0 of 'SPEAKER 0:")
    assert not {"train.npy", "test.npy"} & {path.name for path in (here / "made").iterdir()}
    assert not list((here / "made").glob(".*"))


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        ([], 2, "name a text first, a file or a TFDS set: aigc tokenize TEXT --out DIR"),
        (["--out", "a"], 2, "name a text first"),
        (["play.txt"], 2, "--out needs a value, Path"),
        (
            ["play.txt", "--out", "a", "--kind", "bpee"],
            2,
            "--kind must be one of bpe, word, char, ",
        ),
        (["play.txt", "--out", "a", "--kin", "bpe"], 2, "unknown flag --kin; did you mean --kind?"),
        (["play.txt", "--out", "a", "--special", "stop"], 2, "--special must be "),
        (["play.txt", "--out", "a", "--vocabulary", "9"], 2, "vocabulary=9 must be at least 260"),
        (["play.txt", "--out", "a", "--test", "1"], 2, "test=1.0 must be between 0 and 1"),
        (["lost.txt", "--out", "a"], 1, "there is no file lost.txt"),
        (["lost", "--out", "a"], 1, "tfds name='lost': no folder nowhere"),
        (["play.txt", "--out", "a", "--tokenizer", "b"], 1, "there is no tokenizer b: neither"),
        (["play.txt", "--out", "a", "--tokenizer", "."], 1, ". holds no tokenizer: neither"),
        (["play.txt", "--out", "play.txt"], 1, "play.txt: "),
        (
            ["play.txt", "--out", "a", "--tokenizer", "play.txt"],
            2,
            "play.txt is not a tokenizer.json of Hugging Face's tokenizers",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_asked_wrongly_is_told_in_one_line(
    here, fails, monkeypatch, words, code, complaint
):
    monkeypatch.setenv("TFDS_DATA_DIR", "nowhere")
    assert complaint in fails(*words, code=code)
    assert not (here / "a").exists()


def test_help_shows_the_flags(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["tokenize", "--help"])
    said = capsys.readouterr().out
    for flag in ("--out", "--kind", "--vocabulary", "--special", "--tokenizer", "--test"):
        assert flag in said
    assert "usage: aigc tokenize TEXT" in said
    assert main(["--help"]) == 0
    assert "aigc tokenize TEXT [flags]" in capsys.readouterr().out


@pytest.mark.real_data
def test_a_set_has_splits_of_its_own(here, capsys):
    assert main(["tokenize", "tiny_shakespeare", "--kind", "char", "--out", "made"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"train +1,003,854 +1\.00 ", said) and re.search(r"test +111,540 ", said)
    assert re.search(r"vocabulary +65 ", said)

"""Language models on the command line: prompts, texts as they are written, other libraries."""

import json
import re

import jax
import pytest

from aigc_jax.cli import _typist, main
from aigc_jax.runs import open_run

RHYME = "the cat sat on the mat, and the dog sat on the log.\n" * 60

POET = '''\
"""A poet.

    aigc train poet --data TEXT
"""
import optax

from aigc_jax.data.tokens import text_stream
from aigc_jax.models.gpt import GPT
from experiments.gpt_shakespeare_char import language_model


def poet(*, data: str = "rhyme.txt", context: int = 8):
    """Write rhymes.

    Args:
        data: a file.
        context: characters that it sees.
    """
    text = text_stream(data, kind="byte", special=("end",))
    network = GPT(text.tokenizer.size, context, 1, 1, 8)
    return language_model(text, network, optax.adam(1e-2), batch=4, steps=2, begin=10)
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run of the poet."""
    folder = tmp_path_factory.mktemp("poet")
    (folder / "experiments").mkdir()
    (folder / "experiments/poet.py").write_text(POET)
    (folder / "rhyme.txt").write_text(RHYME)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "poet"]) == 0
    return folder


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    # A text is printed as it is written where there is one device.
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def drawn(out):
    """Return what was printed before the path of its file, and what is in the file."""
    text, path = out.rstrip("\n").rsplit("\n", 1)
    with open(path, encoding="utf-8") as file:
        return text, file.read().rstrip("\n")


def test_training_measures_and_shows_what_it_writes(place):
    scores = json.loads((place / "runs/poet/evaluation.json").read_text())
    [nats] = [value for name, value in scores.items() if name.startswith("nats_per_token/")]
    assert 0 < nats < 7
    [perplexity] = [value for name, value in scores.items() if name.startswith("perplexity/")]
    assert perplexity > 1
    [text] = (place / "runs/poet/samples").glob("samples-*.txt")
    assert text.read_text().count("-" * 40) == 3


def test_a_text_goes_on_from_a_prompt(capsys):
    assert main(["sample", "poet", "--prompt", "the cat", "--n", "2", "--length", "5"]) == 0
    said, kept = drawn(capsys.readouterr().out)
    assert said == kept
    parts = kept.split(f"\n{'-' * 40}\n")
    assert len(parts) == 2 and all(part.startswith("the cat") for part in parts)


def test_several_devices_print_a_text_when_it_is_done(capsys, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert main(["sample", "poet", "--prompt", "the", "--length", "5"]) == 0
    said, kept = drawn(capsys.readouterr().out)
    assert said == kept and kept.startswith("the")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "the cat sat"], r"prompt 'the cat sat' has 11 tokens; .* context is 8"),
        (["--prompt", ""], "a prompt is empty"),
        (["--top-k", "-1"], "top_k=-1 must be at least 0"),
        (["--length", "0"], "length=0 must be at least 1"),
    ],
)
def test_what_cannot_be_sampled_is_said_in_one_line(words, message, capsys):
    assert main(["sample", "poet", *words]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(f"aigc: error: {message}.*", err), err


def test_a_run_is_exported_for_other_libraries(place, capsys):
    from aigc_jax.data.tokenizer import load_tokenizer
    from aigc_jax.pretrained.gpt2 import read_gpt2

    assert main(["export", "poet", "--out", "out"]) == 0
    assert "for transformers" in capsys.readouterr().out
    network, params = read_gpt2(place / "out")
    tokenizer = load_tokenizer(place / "out")
    assert network.vocabulary == tokenizer.size == len(params["tokens"]["embedding"])


def test_a_text_is_printed_as_it_is_written(capsys):
    """Also where a character takes several tokens: of é each byte is one."""
    experiment = open_run("poet").experiment
    ids = lambda text: experiment.prompt([text])["tokens"][0][-len(text.encode()) :]
    observe, said = _typist(experiment, experiment.prompt(["caf"])), []
    for token in ids("é ou"):
        observe([token])
        said.append(capsys.readouterr().out)
    assert said == ["caf", "é", " ", "o", "u"]

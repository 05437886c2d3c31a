"""The command line: train, sample, reconstruct, evaluate, export, tokenize, list.

Nothing is configured here. Every flag is a keyword-only parameter of some function: of the command
below, of `train.loop.fit`, of an experiment, of a task's sampler; its help is that function's
docstring. JAX is imported by the commands that compute, so that help and lists are quick.
"""

import filecmp
import inspect
import math
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import aigc_jax
from aigc_jax import environment, runs
from aigc_jax.data.tokenizer import Kind, Special
from aigc_jax.files import write_npz, write_png, write_shown, write_text, write_whole
from aigc_jax.flags import Group, flags_of, instead, parse
from aigc_jax.terminal import (
    duration,
    explain,
    one_line,
    print_rows,
    print_scores,
    say,
    to_json,
    warn,
)

if TYPE_CHECKING:
    from aigc_jax.core.types import Experiment

HELP = """\
usage: aigc COMMAND ...

Train generative models, draw from them, measure them.

  aigc train EXPERIMENT [flags]    train, or go on with a run that was stopped
  aigc sample RUN [flags]          draw from a trained model, into a picture or an .npz
  aigc reconstruct RUN [flags]     show held-out examples beside what an autoencoder makes of them
  aigc evaluate RUN [flags]        measure a trained model
  aigc export RUN --out DIR        write a trained model for other libraries to read
  aigc tokenize TEXT [flags]       make a text into tokens once, for trainings to read
  aigc list                        show the experiments and the runs that are here

EXPERIMENT is a name or a file; RUN is a directory, or its name under runs/; TEXT is a file, or
the name of a TFDS set.
Each has flags of its own: aigc train EXPERIMENT --help, aigc sample RUN --help.

  --version      print the version
  --traceback    show where an error came from (or set AIGC_TRACEBACK=1)

Compiled programs are kept for the next run, in ~/.cache/aigc_jax: JAX_COMPILATION_CACHE_DIR names
another directory, JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
"""

USAGE = {
    "train": "name an experiment first: aigc train EXPERIMENT [flags]; aigc list shows them",
    "sample": "name a run first: aigc sample RUN [flags]; aigc list shows them",
    "reconstruct": "name a run first: aigc reconstruct RUN [flags]; aigc list shows them",
    "evaluate": "name a run first: aigc evaluate RUN [flags]; aigc list shows them",
    "export": "name a run first: aigc export RUN --out DIR; aigc list shows them",
    "tokenize": "name a text first, a file or a TFDS set: aigc tokenize TEXT --out DIR [flags]",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        words: the command line after `aigc`; that of this process by default.

    Returns:
        0; 1 if it failed; 2 if it was asked for what cannot be; 128 + n if signal n stopped it.
    """
    words = list(sys.argv[1:] if words is None else words)
    show = os.environ.get("AIGC_TRACEBACK", "0") not in ("", "0") or "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: warn(message)
        try:
            code = _dispatch(words)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            # The reader has left, as `head` does; without this, Python would complain at its exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            if show or (explained := explain(error, words)) is None:
                raise
            message, code = explained
            say(f"aigc: error: {one_line(message)}")
            return code


def _dispatch(words: list[str]) -> int:
    command, *rest = words or ["--help"]
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(f"aigc_jax {aigc_jax.__version__}")
        return 0
    if command == "list":
        if rest:
            raise ValueError(f"aigc list takes no arguments, got {rest[0]!r}")
        return _list()
    commands = {
        "train": _train,
        "sample": _sample,
        "reconstruct": _reconstruct,
        "evaluate": _evaluate,
        "export": _export,
        "tokenize": _tokenize,
    }
    if command not in commands:
        raise ValueError(f"no command {command!r}{instead(command, [*commands, 'list'])}")
    if not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help")):
        raise ValueError(USAGE[command])
    environment.tune_xla()
    environment.keep_programs()
    return commands[command](rest)


# Commands


def _train(words: list[str]) -> int:
    name, *rest = words
    file = None if name in ("-h", "--help") else runs.find_experiment(name)
    from aigc_jax.train.loop import fit

    loop = Group("training", fit, less=("identity",))
    if file is None:
        parse("aigc train EXPERIMENT", [name], train, loop)
        return 0
    make = runs.import_experiment(file)
    prog = f"aigc train {shlex.quote(name)}"
    own, arguments, options = parse(prog, rest, train, Group("experiment", make), loop)
    return train(file, make, arguments, options, **own)


def train(
    file: Path,
    make: Callable[..., Any],
    arguments: dict[str, Any],
    options: dict[str, Any],
    *,
    out: Path | None = None,
    distributed: bool = False,
) -> int:
    """Train an experiment; the same command goes on with a run that was stopped.

    An experiment has flags of its own besides: aigc train EXPERIMENT --help.

    Args:
        file: where the experiment is defined.
        make: what makes it.
        arguments: of `make`.
        options: of `train.loop.fit`.
        out: the run's directory; runs/EXPERIMENT if not given.
        distributed: join the other processes of this job, as its environment describes them.
    """
    import jax

    from aigc_jax.train.identity import identify
    from aigc_jax.train.loop import fit

    began = time.perf_counter()
    runs.start_jax(distributed)
    out = out or runs.RUNS / file.stem
    if (out / "experiment.json").exists():
        runs.read_record(out)
    experiment = runs.make_experiment(make, arguments)
    identity = identify(make, **arguments)
    # Where the run finds its experiment again, if both are moved together or neither is.
    identity["file"] = Path(os.path.relpath(file, out.resolve())).as_posix()
    result = fit(experiment, out, identity=identity, **options)
    if result.signal is not None:
        return 128 + result.signal
    if jax.process_index() == 0:
        size = sum(leaf.size for leaf in jax.tree.leaves(result.model.params))
        print(
            f"\n{file.stem}: {size:,} parameters, step {result.step}, "
            f"in {duration(time.perf_counter() - began)}"
        )
        if result.metrics:
            print()
            print_scores(result.metrics)
        print()
        print_rows(runs.list_files(out, result.step))
        ideas = [(f"the same command with --steps {2 * result.step}", "trains on from here")]
        if experiment.evaluate:
            ideas.insert(0, (f"aigc evaluate {runs.shown(out)} --json", ""))
        if experiment.picture:
            ideas.insert(0, (f"aigc sample {runs.shown(out)}{_tempting(experiment)}", ""))
        print("\ntry next")
        print_rows(ideas)
    return 0


def _sample(words: list[str]) -> int:
    return _with_sampler("sample", sample, words)


def _with_sampler(command: str, function: Callable[..., int], words: list[str]) -> int:
    """Run a command that has the flags of a run's sampler besides its own."""
    name, *rest = words
    if name in ("-h", "--help"):
        parse(f"aigc {command} RUN", [name], function)
    run = runs.open_run(name)
    sampler = Group("sampler", run.experiment.task.sample, less=("observe",))
    own, options = parse(f"aigc {command} {shlex.quote(name)}", rest, function, sampler)
    return function(run, options, **own)


def sample(
    run: runs.Run,
    options: dict[str, Any],
    *,
    n: int | None = None,
    label: tuple[str, ...] = (),
    prompt: str | None = None,
    seed: int = 0,
    which: Literal["latest", "best"] = "latest",
    columns: int | None = None,
    out: Path | None = None,
) -> int:
    """Draw from a trained model, and print what was drawn if it is text, and the files made.

    A single text is printed as it is written.

    A run has its sampler's flags besides: aigc sample RUN --help.

    Args:
        run: what was trained.
        options: of its task's sampler.
        n: how many to draw; 10 of each label but at most 100, or 64 where there are no labels, or
            1 where a model goes on from a text.
        label: names or numbers of classes, drawn in turn; all if none is given.
        prompt: a text to go on from, where a model can.
        seed: of the noise; sample i depends on it and i alone.
        which: the latest checkpoint, or the one that its evaluation found best.
        columns: images a row.
        out: a .png for a grid of images, or an .npz for the arrays; by default files in the run's
            samples/ that are named after the options.
    """
    import jax
    import numpy as np

    labels, experiment = runs.class_numbers(run, label), run.experiment
    if n is None:
        n = min(10 * len(labels), 100) if labels else 1 if experiment.prompt else 64
    _check_drawing(out, n=n, columns=columns)
    cond = experiment.cond(n) if experiment.cond else {}
    if labels:
        cond = cond | {"label": np.resize(np.array(labels, np.int32), n)}
    if prompt is not None:
        if experiment.prompt is None:
            raise ValueError(
                f"{run.record['experiment']} goes on from no text: it takes no --prompt"
            )
        cond = cond | experiment.prompt([prompt] * n)
    told = {}
    watched = "observe" in inspect.signature(experiment.task.sample).parameters
    if watched and n == 1 and out is None and jax.device_count() == 1:
        told = {"observe": _typist(experiment, cond)}
    model, step = runs.restore(run, which, warn)

    began = time.perf_counter()
    say(f"drawing {n} samples of {runs.shown(run.path)} at step {step}")
    samples = model.draw(n, cond, seed=seed, **options, **told)
    if told:
        print()
    chosen = {"n": n, "label": ",".join(label), "prompt": prompt, "seed": seed, "columns": columns}
    few = 1 < len(labels) <= 10
    wide = min(n, columns or (len(labels) if few else 10 if labels else math.isqrt(n - 1) + 1))
    arrays = samples if isinstance(samples, dict) else {"samples": samples}
    stem, arrays = f"drawn-{step:06}", {**cond, **arrays}
    _keep(run, stem, chosen | options, out, arrays, [samples], wide, said=bool(told))
    say(f"done in {duration(time.perf_counter() - began)}")
    return 0


def _typist(experiment: "Experiment", cond: dict[str, Any]) -> Callable[[Any], None]:
    """Make what prints one text, a prompt first, as a sampler's `observe` is told its tokens."""
    show: Any = experiment.show
    tokens = [int(token) for row in cond.get("tokens", ())[:1] for token in row]
    start = [int(slot) for slot in cond.get("start", (0,))[:1]]
    printed = 0

    def observe(new: Any) -> None:
        nonlocal printed
        tokens.append(int(new[0]))
        # A character may take several tokens: until the last is there, its place is held.
        text = show({"tokens": [tokens], "start": start})["samples"].rstrip("\ufffd")
        print(text[printed:], end="", flush=True)
        printed = max(printed, len(text))

    return observe


def _reconstruct(words: list[str]) -> int:
    return _with_sampler("reconstruct", reconstruct, words)


def reconstruct(
    run: runs.Run,
    options: dict[str, Any],
    *,
    n: int = 32,
    seed: int = 0,
    which: Literal["latest", "best"] = "latest",
    columns: int | None = None,
    out: Path | None = None,
) -> int:
    """Encode and decode held-out examples, and show each beside what became of it.

    A run has its sampler's flags besides: aigc reconstruct RUN --help.

    Args:
        run: what was trained.
        options: of its task's sampler.
        n: how many examples, from the first on.
        seed: of the noise.
        which: the latest checkpoint, or the one that its evaluation found best.
        columns: pairs a row.
        out: a .png for a grid of images, or an .npz for the arrays; by default files in the run's
            samples/ that are named after the options.
    """
    if run.experiment.originals is None:
        raise ValueError(f"{run.record['experiment']} is no autoencoder: it reconstructs nothing")
    _check_drawing(out, n=n, columns=columns)
    cond = run.experiment.originals(n)
    model, step = runs.restore(run, which, warn)

    began = time.perf_counter()
    say(f"reconstructing {n} examples by {runs.shown(run.path)} at step {step}")
    samples = model.draw(n, cond, seed=seed, **options)
    chosen = {"n": n, "seed": seed, "columns": columns} | options
    arrays = {**cond, "samples": samples}
    wide = min(n, columns or 8)
    original = next(iter(cond.values()))
    _keep(run, f"reconstructed-{step:06}", chosen, out, arrays, [original, samples], wide)
    say(f"done in {duration(time.perf_counter() - began)}")
    return 0


def _check_drawing(out: Path | None, **counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if out is not None and out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out must end in .png or .npz, got {str(out)!r}")


def _keep(
    run: runs.Run,
    stem: str,
    chosen: dict[str, Any],
    out: Path | None,
    arrays: dict[str, Any],
    shown: list[Any],
    columns: int,
    said: bool = False,
) -> None:
    """Write what was drawn, and print its text and its paths.

    Args:
        run: what drew it.
        stem: of the files' names by default.
        chosen: the options; those that are not the sampler's defaults are named too.
        out: the file asked for, or None.
        arrays: for an .npz.
        shown: the samples; or originals and samples, which are shown side by side.
        columns: of a grid.
        said: whether the text has been printed.
    """
    from aigc_jax.metrics.pictures import image_grid, side_by_side

    if out is not None and out.suffix == ".npz":
        write_npz(out, arrays)
        print(out)
        return
    defaults = {
        flag.name: flag.default for flag in flags_of(run.experiment.task.sample, ("observe",))
    }
    chosen = {k: v for k, v in chosen.items() if k not in defaults or v != defaults[k]}
    stem, samples = _name(stem, chosen), run.path / "samples"
    if run.experiment.show is None:
        shape = getattr(shown[-1], "shape", None)
        if shape is None or len(shape) != 4 or shape[-1] not in (1, 3):
            raise ValueError(
                f"the samples of {runs.shown(run.path)} are not images; --out FILE.npz keeps them"
            )
        # As large as can be looked at.
        scale = max(1, 64 // max(shape[1:3]))
        grid = image_grid(side_by_side(*shown), len(shown) * columns, scale=scale)
        path = out or samples / f"{stem}.png"
        write_png(path, grid)
        print(path)
        return
    if out is not None:
        raise ValueError(
            f"the samples of {runs.shown(run.path)} are not images; --out FILE.npz keeps them"
        )
    parts = [run.experiment.show(one) for one in shown]
    texts = {name for name, what in parts[-1].items() if isinstance(what, str)}
    for name in texts:
        # Line by line, so that an original stands above its reconstruction.
        lines = zip(*(part[name].splitlines() for part in parts), strict=False)
        text = ("\n\n" if len(parts) > 1 else "\n").join(map("\n".join, lines))
        if not said:
            print(text)
        print(write_shown(samples, f"{stem}-{name}", text))
    for part, whose in zip(parts, ("original-", "")[-len(parts) :], strict=True):
        for name, what in part.items():
            if name not in texts:
                print(write_shown(samples, f"{stem}-{whose}{name}", what))


def _evaluate(words: list[str]) -> int:
    name, *rest = words
    if name in ("-h", "--help"):
        parse("aigc evaluate RUN", [name], evaluate)
    [own] = parse(f"aigc evaluate {shlex.quote(name)}", rest, evaluate)
    return evaluate(runs.open_run(name), **own)


def evaluate(
    run: runs.Run, *, json: bool = False, which: Literal["latest", "best"] = "latest"
) -> int:
    """Measure a trained model, and keep the result in the run as evaluation.json.

    Args:
        run: what was trained.
        json: print the result as JSON, and nothing else, to standard output.
        which: the latest checkpoint, or the one that its evaluation found best; its result is kept
            as evaluation-best.json.
    """
    if run.experiment.evaluate is None:
        raise ValueError(f"{run.record['experiment']} has no evaluation")
    model, step = runs.restore(run, which, warn)
    began = time.perf_counter()
    say(f"evaluating {runs.shown(run.path)} at step {step}")
    scores = {name: float(value) for name, value in run.experiment.evaluate(model).items()}
    say(f"done in {duration(time.perf_counter() - began)}")
    text = to_json({"step": step, **scores})
    path = run.path / ("evaluation.json" if which == "latest" else f"evaluation-{which}.json")
    write_text(path, text + "\n")
    if json:
        print(text)
    else:
        print_scores(scores)
        print(f"\n{path}")
    return 0


def _export(words: list[str]) -> int:
    name, *rest = words
    if name in ("-h", "--help"):
        parse("aigc export RUN", [name], export)
    [own] = parse(f"aigc export {shlex.quote(name)}", rest, export)
    return export(runs.open_run(name), **own)


def export(run: runs.Run, *, out: Path, which: Literal["latest", "best"] = "latest") -> int:
    """Write a trained model in the format of another library, such as Hugging Face's.

    Args:
        run: what was trained.
        out: the directory to write to.
        which: the latest checkpoint, or the one that its evaluation found best.
    """
    if run.experiment.export is None:
        raise ValueError(f"{run.record['experiment']} is known to no other library here")
    model, step = runs.restore(run, which, warn)
    print(f"{out}: {run.experiment.export(model, out)}, at step {step}")
    return 0


def _tokenize(words: list[str]) -> int:
    name, *rest = words
    if name in ("-h", "--help"):
        parse("aigc tokenize TEXT", [name], tokenize)
    [own] = parse(f"aigc tokenize {shlex.quote(name)}", rest, tokenize)
    return tokenize(name, **own)


def tokenize(
    text: str,
    *,
    out: Path,
    kind: Kind = "bpe",
    vocabulary: int = 5000,
    special: tuple[Special, ...] = (),
    tokenizer: Path | None = None,
    test: float = 0.1,
) -> int:
    """Make a text into streams of tokens, one to train on and one held out.

    Experiments that learn from text take DIR in place of its name. The same command may be given
    again; it changes nothing.

    Args:
        text: a file of UTF-8 text, or the name of a TFDS set.
        out: the directory DIR, for tokenizer.json, train.npy and test.npy.
        kind: pieces of words, whole words, characters or bytes.
        vocabulary: how many pieces or words to train on the training split.
        special: the special tokens, in this order from 0; by default pad, start, end and unk of
            pieces and words, and none of characters and bytes.
        tokenizer: take this one and train none: a directory, as made by this command or by
            Hugging Face's libraries, or a tokenizer.json.
        test: the share of a file that is held out, its end; a TFDS set has splits of its own.
    """
    from aigc_jax.data.tokenizer import load_tokenizer
    from aigc_jax.data.tokens import Written, fit_tokenizer, open_text, write_stream

    corpus = open_text(text, test=test)
    if tokenizer is not None:
        made = load_tokenizer(tokenizer)
    else:
        say(f"training a tokenizer on {text}")
        made = fit_tokenizer(
            corpus, kind=kind, vocabulary=vocabulary, special=list(special) or None
        )
    file = out / "tokenizer.json"
    if not file.exists():
        made.save(out)
    elif load_tokenizer(file).to_json() != made.to_json():
        raise ValueError(f"{out} holds another tokenizer; give another directory to --out")
    rows = [("", "tokens", "characters per token", "file")]
    for split, documents in (("train", corpus.train), ("test", corpus.test)):
        path, written = out / f"{split}.npy", Written(0, 0)

        def write(partial: Path, path=path, documents=documents) -> None:
            nonlocal written
            written = write_stream(partial, documents(), made)
            if path.exists() and not filecmp.cmp(partial, path, shallow=False):
                raise ValueError(f"{path} holds other tokens; give another directory to --out")

        say(f"encoding {split}")
        write_whole(path, write)
        each = f"{written.characters / max(written.tokens, 1):.2f}"
        rows.append((split, f"{written.tokens:,}", each, str(path)))
    print_rows([*rows, ("vocabulary", f"{made.size:,}", "", str(file))])
    return 0


def _list() -> int:
    print("experiments")
    print_rows(runs.describe_experiments() or [("none in ./experiments",)])
    found = [(runs.shown(path), *runs.progress(path)) for path in runs.find_runs()]
    print("\nruns")
    print_rows(found or [("none in ./runs; aigc train EXPERIMENT makes one",)])
    return 0


# What is said


def _tempting(experiment: "Experiment") -> str:
    """Return flags of `aigc sample` that show what it can do: a class, and an option changed."""
    flags = ""
    if classes := experiment.classes:
        flags += f" --label {shlex.quote(classes[3 % len(classes)])}"
    for flag in flags_of(experiment.task.sample, ("observe",)):
        if isinstance(flag.default, float) and flag.default:
            # Twice as hot a text or latent is noise.
            times = 0.5 if flag.name.endswith("temperature") else 2
            return f"{flags} --{flag.name.replace('_', '-')} {times * flag.default:g}"
    return flags


def _name(stem: str, chosen: dict[str, Any]) -> str:
    """Name a file after what was chosen, so that other choices do not overwrite it."""
    said = [f"{name}={value}" for name, value in chosen.items() if value not in (None, "")]
    return re.sub(r"[^\w.,=+-]+", "_", "-".join([stem, *said]))[:200]

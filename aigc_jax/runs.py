"""Experiments and the runs they left on disk: what there is, found, described and loaded.

An experiment is a function named as its file. A run is a directory that says in `experiment.json`
which experiment it trains and with which arguments, so that it can be made again.
"""

import ast
import contextlib
import importlib
import inspect
import json
import math
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aigc_jax.flags import Group, instead, parse

if TYPE_CHECKING:
    from aigc_jax.core.types import Experiment, Model

RUNS = Path("runs")


# Experiments


def _folders() -> list[Path]:
    """Return where experiments are looked for by name, in this order."""
    package = Path(__file__).resolve().parent
    repository = package.parent
    folders = [Path.cwd() / "experiments"]
    # A neighbour of the package in site-packages is someone else's.
    if (repository / "pyproject.toml").exists():
        folders.append(repository / "experiments")
    folders.append(package / "experiments")
    return [folder for folder in folders if folder.is_dir()]


def find_experiments() -> dict[str, Path]:
    """Map names to files, which may be experiments' or what experiments import."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for file in sorted(folder.glob("*.py")):
            found.setdefault(file.stem, file.resolve())
    return found


def describe_experiments() -> list[tuple[str, ...]]:
    """List experiments by name, with what they say of themselves, without importing them."""
    described = []
    for name, file in sorted(find_experiments().items()):
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            described.append((name, f"cannot be read: {shown(file)}"))
            continue
        header = (ast.get_docstring(tree) or "").splitlines()
        score = next((line for line in header if line.strip().startswith("Score:")), "")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                about = (ast.get_docstring(node) or "").partition("\n")[0]
                described.append((name, about, score.strip().removeprefix("Score:").strip()))
    return described


def find_experiment(name: str) -> Path:
    """Return the file of an experiment, named by file or by name."""
    known = find_experiments()
    if not (name.endswith(".py") or "/" in name or os.sep in name):
        if name not in known:
            there = f"; there are {', '.join(sorted(known))}" if known else "; there are none"
            raise ValueError(f"no experiment {name!r}{instead(name, known) or there}")
        return known[name]
    file = Path(name)
    if file.is_dir() or (file.exists() and file.suffix != ".py"):
        raise ValueError(f"{name!r} is not an experiment; an experiment is a .py file")
    if not file.exists():
        beside = [str(other) for other in sorted(file.parent.glob("*.py"))]
        near = instead(name, beside) or instead(file.stem, known)
        raise ValueError(f"no experiment file {name!r}{near}")
    return file.resolve()


def import_experiment(file: Path) -> "Callable[..., Experiment]":
    """Import the function that makes an experiment from its file.

    The file becomes a module of a package `experiments`, in which it finds its neighbours first and
    then the experiments that are known by name, without any change of the interpreter's path.
    """
    name = file.stem
    here = shown(file)
    package = types.ModuleType("experiments")
    package.__path__ = [str(folder) for folder in dict.fromkeys([file.parent, *_folders()])]
    for loaded in [m for m in sys.modules if m.partition(".")[0] == "experiments"]:
        del sys.modules[loaded]
    sys.modules["experiments"] = package
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(f"experiments.{name}")
    except SyntaxError as error:
        where = f"{shown(Path(error.filename or file))}:{error.lineno}"
        raise ValueError(f"{where}: {error.msg}") from error
    except ImportError as error:
        raise ValueError(f"{here} cannot be imported: {error}") from error
    make = getattr(module, name, None)
    if not inspect.isfunction(make):
        raise ValueError(
            f"{here} defines no function {name}; an experiment is a function named as its file"
        )
    for parameter in inspect.signature(make).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            raise ValueError(
                f"{here}: parameter {parameter.name!r} of {name} must be keyword-only: "
                f"def {name}(*, {parameter.name}, ...)"
            )
    return make


def make_experiment(make: "Callable[..., Experiment]", arguments: dict[str, Any]) -> "Experiment":
    """Call the function that makes an experiment, and hold it to that."""
    from aigc_jax.core.types import Experiment

    experiment = make(**arguments)
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"{make.__name__} returned {type(experiment).__name__}; it must return an Experiment"
        )
    return experiment


# Runs


class Run(NamedTuple):
    """A run as it was found on disk.

    Attributes:
        path: its directory.
        record: what it is, from its `experiment.json`.
        experiment: what it trains, made anew from the record.
    """

    path: Path
    record: dict[str, Any]
    experiment: "Experiment"


def find_runs() -> list[Path]:
    """Find the runs under ./runs; the judges that evaluations train lie one folder deeper."""
    found = [*RUNS.glob("*/experiment.json"), *RUNS.glob("*/*/experiment.json")]
    return sorted(record.parent for record in found)


def open_run(name: str) -> Run:
    """Find a run, and make what it trained."""
    path = next((p for p in (Path(name), RUNS / name) if (p / "experiment.json").is_file()), None)
    if path is None:
        known = [word for run in find_runs() for word in (shown(run), run.name)]
        near = instead(name.rstrip("/"), known)
        what = f"{name!r} holds no run" if Path(name).exists() else f"there is no run {name!r}"
        raise ValueError(f"{what}{near or '; aigc list shows the runs'}")
    record = read_record(path)
    start_jax()
    file = path / record.get("file", "")
    make = import_experiment(
        file.resolve() if file.is_file() else find_experiment(record["experiment"])
    )
    kept = record["arguments"]
    if gone := kept.keys() - inspect.signature(make).parameters.keys():
        raise ValueError(
            f"{shown(path)} was made with {sorted(gone)[0]!r}, which is no longer an argument "
            f"of {make.__name__}"
        )
    try:
        words = _as_words(make, kept)
        _, arguments = parse(shown(path), words, None, Group("experiment", make))
    except ValueError as error:
        raise ValueError(f"{shown(path)} was made with other arguments: {error}") from error
    return Run(path, record, make_experiment(make, arguments))


def start_jax(distributed: bool = False) -> None:
    """Find the devices, so that there being none is said in one line."""
    import jax

    doing = "join the other processes" if distributed else "start on any device"
    try:
        if distributed:
            jax.distributed.initialize()
        jax.devices()
    # JAX asserts that it finds a device where JAX_PLATFORMS names another kind than there is.
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = str(error) or f"JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS')!r}"
        raise RuntimeError(f"JAX cannot {doing}: {reason}") from error


def read_record(path: Path) -> dict[str, Any]:
    """Read what a run says that it is."""
    file = path / "experiment.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record["arguments"], dict) or not isinstance(record["experiment"], str):
            raise ValueError("its names and arguments are not what a run writes")
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{file} is damaged: {error}") from error
    return record


def _as_words(make: Callable[..., Any], kept: dict[str, Any]) -> list[str]:
    """Say arguments kept as JSON as the command line that gives them.

    So their types are those of the function again: JSON has no tuples and no paths.
    """
    import jax

    words = []
    for name, value in kept.items():
        default = inspect.signature(make).parameters[name].default
        if repr(value) == repr(json.loads(json.dumps(default, default=str))):
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            words += [flag, *map(str, jax.tree.leaves(value))]
        else:
            words.append(f"{flag}={value}")
    return words


def restore(
    run: Run, which: Literal["latest", "best"], report: Callable[[str], None]
) -> "tuple[Model, int]":
    """Load the model of a run and its step, reporting the checkpoints that are damaged."""
    from aigc_jax.train.loop import load

    if which == "best" and run.experiment.best is None:
        raise ValueError(f"{run.record['experiment']} keeps no best checkpoint; --which latest")
    if not (run.path / "checkpoints").is_dir():
        raise FileNotFoundError(f"there is no checkpoint in {shown(run.path)} yet")
    seed = run.record.get("seed", 0)
    return load(run.experiment, run.path, seed=seed, which=which, report=report)


def progress(path: Path) -> tuple[str, str]:
    """Return how far a run has come and what was last measured, without loading it."""
    steps = [int(p.name) for p in (path / "checkpoints").glob("*") if p.name.isdigit()]
    values: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        values = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
        values = {name: value for name, value in values.items() if name.endswith("/loss")}
    with contextlib.suppress(OSError, ValueError):
        values = json.loads((path / "evaluation.json").read_text())
    said = [
        f"{name} {math.nan if value is None else value:.4g}"  # JSON has no NaN
        for name, value in values.items()
        if name != "step" and "_floor/" not in name
    ]
    return f"step {max(steps, default=0)}", "  ".join(said[:3])


def class_numbers(run: Run, given: tuple[str, ...]) -> list[int]:
    """Return the numbers of the classes asked for by name or by number, or of all."""
    classes = run.experiment.classes
    if given and not classes:
        raise ValueError(f"{shown(run.path)} has no classes; it takes no --label")
    labels = []
    for label in given:
        if label in classes:
            labels.append(classes.index(label))
        elif label.isdecimal() and int(label) < len(classes):
            labels.append(int(label))
        else:
            named = f" or one of {', '.join(classes)}" if len(classes) <= 20 else ""
            there = f"; labels are 0 to {len(classes) - 1}{named}"
            raise ValueError(f"no label {label!r}{instead(label, classes) or there}")
    return labels or list(range(len(classes)))


def list_files(out: Path, step: int) -> list[tuple[str, str]]:
    """List the files of a run that has ended."""
    pictures = sorted((out / "samples").glob(f"*-{step:06}.png"))
    # Of a picture throughout the training, and those that are drawn as films.
    films = [p.with_name(p.name.replace(f"-{step:06}.png", ".gif")) for p in pictures]
    films += sorted((out / "samples").glob(f"*-{step:06}.gif"))
    others = sorted((out / "samples").glob(f"[!.]*-{step:06}.*"))
    files = {
        "checkpoint": [out / "checkpoints" / str(step)],
        "metrics": [out / "metrics.jsonl"],
        "evaluation": [out / "evaluation.json"],
        "pictures": pictures,
        "films": films,
        "texts, sounds": [path for path in others if path.suffix not in (".png", ".gif")],
    }
    return [
        (what if i == 0 else "", shown(path))
        for what, paths in files.items()
        for i, path in enumerate(path for path in paths if path.exists())
    ]


def shown(path: Path) -> str:
    """Return a path as a user would type it from here."""
    path = path.absolute()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

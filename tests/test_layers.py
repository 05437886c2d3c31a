"""Imports go strictly downward, heavy libraries are imported where they are used, and nothing else.

The rules are data; `violations` holds a module's source against them, and is itself held against
sources that break each.
"""

import ast
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "aigc_jax"

# What each room, or module at the root, may import of the package besides itself. "" is the
# package's own __init__.
BELOW: dict[str, set[str]] = {
    "": {"core"},
    "core": set(),
    "functional": {"core"},
    "samplers": {"core", "functional"},
    "nn": {"core", "functional"},
    "models": {"core", "functional", "samplers", "nn"},
    "tasks": {"core", "functional", "samplers", "nn", "models"},
    "data": {"core", "functional"},
    "environment": set(),
    "files": set(),
    "train": {"core", "functional", "files"},
    "metrics": {"core", "functional", "data", "train"},
    "pretrained": {"core", "functional", "nn", "models", "files"},
    "flags": set(),
    "terminal": set(),
    "runs": {"core", "train", "flags"},
}
BELOW["cli"] = BELOW["__main__"] = {*BELOW, "cli"} - {""}

# Rooms of array mathematics alone: nothing of other people's but these.
ONLY = {name: {"jax", "numpy", "chex", "optax"} for name in ("core", "functional", "samplers")}

# Never imported on the way to a training step: slow to load, or missing where one runs.
HEAVY = {
    "PIL",
    "array_record",
    "grain",
    "matplotlib",
    "mido",
    "orbax",
    "rich",
    "sklearn",
    "soundfile",
    "tensorboardX",
    "tensorflow_datasets",
    "tokenizers",
    "tyro",
}
LIGHT_ROOMS = ("core", "functional", "samplers", "nn", "models", "tasks")
LIGHT_MODULES = (PACKAGE, f"{PACKAGE}.train.step", f"{PACKAGE}.train.compile")


class Import(NamedTuple):
    """What a module imports, on which line, and whether it does so when it is itself imported."""

    module: str
    line: int
    at_once: bool


def imports(source: str, name: str, package: bool = False) -> Iterator[Import]:
    """Find what a module imports, anywhere in it."""
    parent = name if package else name.rpartition(".")[0]

    def visit(node: ast.AST, at_once: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno, at_once)
            case ast.ImportFrom():
                ancestor = parent.split(".")[: len(parent.split(".")) + 1 - node.level]
                base = ".".join([*(ancestor if node.level else []), *filter(None, [node.module])])
                # Whether `x` in `from base import x` is a module shows only in the files.
                yield from (Import(f"{base}.{a.name}", node.lineno, at_once) for a in node.names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                at_once = False
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for child in node.body:
                    yield from visit(child, False)
                for child in node.orelse:
                    yield from visit(child, at_once)
                return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once)

    yield from visit(ast.parse(source), True)


def room(module: str) -> str:
    return f"{module}.".split(".")[1]


def declared() -> set[str]:
    """Read which distributions the project says it needs, less what only its own checks need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {})
    needed = project["dependencies"] + [
        line for extra in extras.keys() - {"test", "parity", "docs"} for line in extras[extra]
    ]
    names = {line.split(";")[0].strip().split("[")[0] for line in needed}
    return {
        canonical(name.split("<")[0].split(">")[0].split("=")[0].strip("!~ ")) for name in names
    }


def canonical(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


# jax is arrays of numpy's: whoever needs it needs that, declared or not.
DECLARED = declared() | {"numpy"}
DISTRIBUTIONS = packages_distributions()


def violations(source: str, name: str, package: bool = False) -> list[str]:
    """Hold one module against the rules, giving a line for each it breaks."""
    if room(name) not in BELOW:
        return [f"{name}: no such room; give {room(name)!r} its place in BELOW"]
    found = []
    for module, line, at_once in imports(source, name, package):
        top, where = module.split(".")[0], f"{name}:{line}: {module}"
        if top == PACKAGE:
            if room(module) not in {"", "__version__", room(name)} | BELOW[room(name)]:
                found.append(f"{where} is not below {room(name) or PACKAGE}")
        elif top not in sys.stdlib_module_names:
            if not {canonical(d) for d in DISTRIBUTIONS.get(top, [top])} & DECLARED:
                found.append(f"{where} is not a declared dependency")
            if room(name) in ONLY and top not in ONLY[room(name)]:
                found.append(f"{where} is not array mathematics; {room(name)} takes none other")
        if at_once and top in HEAVY and is_light(name):
            found.append(f"{where} is heavy; import it where it is used")
    return found


def is_light(name: str) -> bool:
    return name in LIGHT_MODULES or room(name) in LIGHT_ROOMS


def modules() -> dict[str, Path]:
    """Map the name of each module of the package to its file."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def reached(start: set[str]) -> dict[str, str]:
    """Follow imports made at once from some modules: each module reached, and by which first."""
    files = modules()
    by, queue = {name: name for name in start}, sorted(start)
    for name in queue:
        parents = {".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)}
        source = imports(files[name].read_text(), name, files[name].name == "__init__.py")
        for target in parents | {i.module for i in source if i.at_once}:
            while target.startswith(PACKAGE):
                if target in files and target not in by:
                    by[target] = name
                    queue.append(target)
                target = target.rpartition(".")[0]
    return by


def light() -> set[str]:
    return {name for name in modules() if is_light(name)}


@pytest.mark.parametrize("name", modules())
def test_a_module_keeps_the_rules(name):
    path = modules()[name]
    assert violations(path.read_text(), name, path.name == "__init__.py") == []


def test_nothing_on_the_way_to_a_training_step_imports_a_heavy_library():
    files, found = modules(), []
    for name, by in reached(light()).items():
        package = files[name].name == "__init__.py"
        found += [
            f"{name}:{i.line}: {i.module} (imported by {by})"
            for i in imports(files[name].read_text(), name, package)
            if i.at_once and i.module.split(".")[0] in HEAVY
        ]
    assert found == []


def test_the_way_to_a_training_step_loads_where_heavy_libraries_are_missing():
    # Flax loads rich itself, so both are missing only while what must not need them loads.
    bare = {m for m in light() if room(m) in {"", "core", "functional", "samplers", "train"}}
    script = f"""
        import importlib, sys

        class Missing:
            names = {HEAVY | {"flax"}}

            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in self.names:
                    raise ModuleNotFoundError(f"{{name}} is not installed", name=name)

        sys.meta_path.insert(0, Missing())
        for name in {sorted(bare)}:
            importlib.import_module(name)
        Missing.names -= {{"flax", "rich"}}
        for name in {sorted(light() - bare)}:
            importlib.import_module(name)
        loaded = {{name.split(".")[0] for name in sys.modules}}
        assert not loaded & Missing.names, loaded & Missing.names
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_the_list_of_heavy_libraries_is_of_ones_that_are_used():
    # Misspelt or renamed, a name would be looked for in vain.
    known = {canonical(d) for top in HEAVY for d in DISTRIBUTIONS.get(top, [top])}
    assert known <= DECLARED | {"soundfile"}


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("core.a", "from aigc_jax.functional import schedules", "is not below core"),
        ("functional.a", "import aigc_jax.nn.conv", "is not below functional"),
        ("functional.a", "def f():\n  from aigc_jax import models", "is not below functional"),
        ("samplers.a", "from ..models import unet", "is not below samplers"),
        ("samplers.a", "from .. import models", "is not below samplers"),
        ("nn.a", "from aigc_jax.samplers.guidance import f", "is not below nn"),
        ("models.a", "from aigc_jax.tasks.gan import f", "is not below models"),
        ("tasks.a", "from aigc_jax.train.step import init", "is not below tasks"),
        ("tasks.a", "class A:\n  import aigc_jax.data.digits", "is not below tasks"),
        ("train.a", "from aigc_jax.tasks.gan import f", "is not below train"),
        ("train.a", "from aigc_jax.metrics.report import f", "is not below train"),
        ("data.a", "import aigc_jax.train.loop as loop", "is not below data"),
        ("metrics.a", "from aigc_jax.models.unet import UNet", "is not below metrics"),
        ("nn.a", "from aigc_jax import cli", "is not below nn"),
        ("flags", "from aigc_jax.runs import find_runs", "is not below flags"),
        ("runs", "from aigc_jax.cli import main", "is not below runs"),
        ("", "from aigc_jax.train.step import init", "is not below aigc_jax"),
        ("core.a", "import flax", "takes none other"),
        ("functional.a", "from flax import linen as nn", "takes none other"),
        ("samplers.a", "def f():\n  import scipy.stats", "takes none other"),
        ("nn.a", "import torch", "is not a declared dependency"),
        ("data.a", "def f():\n  import yaml", "is not a declared dependency"),
        ("tasks.a", "import grain", "is heavy"),
        ("models.a", "try:\n  from PIL import Image\nexcept ImportError: pass", "is heavy"),
        ("nn.a", "class A:\n  import matplotlib.pyplot as plt", "is heavy"),
        ("train.step", "import orbax.checkpoint as ocp", "is heavy"),
        ("attic.a", "", "no such room"),
    ],
)
def test_what_breaks_a_rule_is_found(name, source, complaint):
    name = f"{PACKAGE}.{name}".rstrip(".")
    found = violations(source, name, package=name == PACKAGE)
    assert found, f"nothing found in: {source}"
    assert any(complaint in line for line in found), found


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("core.a", "import jax.numpy as jnp, math\nfrom aigc_jax.core.types import Task"),
        ("samplers.a", "from . import guidance\nfrom ..functional.schedules import f"),
        ("models.a", "from aigc_jax.nn import conv\nimport flax.linen as nn"),
        ("tasks.a", "def f():\n  import matplotlib.pyplot"),
        ("tasks.a", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import grain"),
        ("train.checkpoint", "import orbax.checkpoint as ocp\nfrom aigc_jax import __version__"),
        ("data.a", "from sklearn.datasets import load_digits"),
        ("cli", "from aigc_jax.tasks import gan\nfrom aigc_jax.train import loop\nimport tyro"),
    ],
)
def test_what_keeps_the_rules_is_let_be(name, source):
    assert violations(source, f"{PACKAGE}.{name}") == []


def test_packages_resolve_their_relative_imports_from_themselves():
    assert [i.module for i in imports("from .a import b", "p.q", package=True)] == ["p.q.a.b"]
    assert [i.module for i in imports("from .a import b", "p.q")] == ["p.a.b"]
    assert [i.module for i in imports("from ..a import b", "p.q.r")] == ["p.a.b"]


def test_what_a_module_reaches_is_followed_through_others():
    from_compile = reached({f"{PACKAGE}.train.compile"})
    assert {f"{PACKAGE}.train.step", f"{PACKAGE}.core.types", f"{PACKAGE}.core"} <= set(
        from_compile
    )
    assert f"{PACKAGE}.metrics.report" not in from_compile

"""The house's manners: every public thing says what it does, typed, under an honest name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "aigc_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
TYPED = ("core", "functional", "samplers")

VAGUE = re.compile(r"utils?|helpers?|misc|common|base|manager", re.IGNORECASE)
VAGUE_CLASS = re.compile(r"Base[A-Z]|.*(Manager|Helper|Utils?)$")
# "Returns", "Computes": a verb in the third person; not "Pass", "Focus" or "Bias".
THIRD_PERSON = re.compile(r"[A-Z][a-z]+(?<![aisu])s\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.Module) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Find public functions and classes, and the public methods of those."""

    def of(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
        for node in body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    yield from of(node.body, f"{prefix}{node.name}.")

    yield from of(tree.body, "")


def undocumented(source: str) -> list[str]:
    """List what lacks a docstring of one summary line, in the imperative if a function's."""
    tree = ast.parse(source)
    found = []
    for name, node in [("the module", tree), *public(tree)]:
        text = ast.get_docstring(node)
        first = text.splitlines()[0] if text else ""
        if not text:
            found.append(f"{name} has no docstring")
        elif not first.endswith("."):
            found.append(f"{name}'s first line does not end its sentence: {first!r}")
        elif isinstance(node, Function) and THIRD_PERSON.match(first):
            found.append(f"{name}'s first line is not imperative: {first!r}")
    return found


def untyped(source: str) -> list[str]:
    """List the parameters and results of public functions that have no annotation."""
    found = []
    for name, node in public(ast.parse(source)):
        if not isinstance(node, Function):
            continue
        a = node.args
        parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        for i, parameter in enumerate(parameters):
            bound = "." in name and i == 0 and parameter.arg in ("self", "cls")
            if parameter.annotation is None and not bound:
                found.append(f"{name}: {parameter.arg}")
        if node.returns is None:
            found.append(f"{name}: its result")
    return found


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_public_thing_says_what_it_does(path):
    assert undocumented(path.read_text()) == []


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(PACKAGE).parts[0] in TYPED], ids=relative
)
def test_every_parameter_of_the_mathematics_has_a_type(path):
    assert untyped(path.read_text()) == []


def test_no_module_and_no_class_has_a_name_that_says_nothing():
    names = {part for path in FILES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert {name for name in names if VAGUE.fullmatch(name)} == set()
    classes = {
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert {name for name in classes if VAGUE_CLASS.match(name)} == set()


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("x = 1", "the module has no docstring"),
        ('"A module"', "the module's first line does not end"),
        ('"A module."\ndef f(): pass', "f has no docstring"),
        ('"A module."\ndef f():\n  "Do it,\\n  at length."', "f's first line does not end"),
        ('"A module."\ndef f():\n  "Returns it."', "f's first line is not imperative"),
        ('"A module."\nclass A: x = 1', "A has no docstring"),
        ('"A module."\nclass A:\n  "An a."\n  def f(self): pass', "A.f has no docstring"),
    ],
)
def test_what_is_undocumented_is_found(source, complaint):
    assert any(line.startswith(complaint) for line in undocumented(source))


def test_what_is_untyped_is_found():
    assert untyped("def f(a, b: int, *c, d, **e) -> int: ...") == ["f: a", "f: d", "f: c", "f: e"]
    assert untyped("def f(a: int): ...") == ["f: its result"]
    assert untyped("class A:\n  def f(self, a) -> int: ...") == ["A.f: a"]
    assert untyped("def _f(a): ...\ndef f(a: int) -> int:\n  def g(b): ...") == []


def test_what_is_in_order_is_let_be():
    source = (
        '"A module."\nclass A:\n  "An a."\n  def _f(self): pass\ndef f():\n  "Pass it on.\\n\\n  x"'
    )
    assert undocumented(source) == []
    assert VAGUE.fullmatch("utils")
    assert not VAGUE.fullmatch("baseline")
    assert VAGUE_CLASS.match("BaseModel")
    assert not VAGUE_CLASS.match("Based")

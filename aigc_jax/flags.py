"""Flags: the keyword-only parameters of functions, read from a command line by tyro.

A flag has its parameter's name, type and default, and its help is that function's docstring. What
is wrong with a command line is said in one line.
"""

import contextlib
import difflib
import functools
import inspect
import io
import itertools
import re
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple


class Group(NamedTuple):
    """The keyword-only parameters of a function as a group of flags."""

    title: str
    function: Callable[..., Any]
    less: tuple[str, ...] = ()


def flags_of(function: Callable[..., Any], less: Iterable[str] = ()) -> list[inspect.Parameter]:
    """Return the keyword-only parameters of a function, with their types."""
    import tyro

    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in less
    ]
    written = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    hints = typing.get_type_hints(
        # Only these: what else is annotated may be known to type checkers alone.
        types.SimpleNamespace(__annotations__=written),
        getattr(_original(function), "__globals__", {}),
        include_extras=True,
    )
    flags = []
    for flag in parameters:
        kind = hints.get(flag.name, str if flag.default is None else type(flag.default))
        if flag.default is None or flag.default == () or flag.default is False:
            # "INT" says more than "{None}|INT (default: None)".
            given = [k for k in typing.get_args(kind) if k is not types.NoneType]
            simple = (
                flag.default is None and len(given) == 1 and given[0] in (int, float, str, Path)
            )
            metavar = given[0].__name__.upper() if simple else None
            kind = Annotated[kind, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]
        flags.append(flag.replace(annotation=kind))
    return flags


def parse(
    prog: str, words: list[str], command: Callable[..., Any] | None, *groups: Group
) -> list[dict[str, Any]]:
    """Parse a command line into the arguments of a command and of groups of flags.

    Raises:
        ValueError: two of them have one flag, or the command line is not right, in one line.
        SystemExit: help was asked for, and printed.
    """
    import tyro

    own = flags_of(command) if command else []
    types_of = {flag.name: flag.annotation for flag in own}
    owner = dict.fromkeys(types_of, "command")
    fields = list(own)
    for group in groups:
        flags = flags_of(group.function, group.less)
        for flag in flags:
            if flag.name in owner:
                raise ValueError(
                    f"{prog}: {flag.name!r} is an argument of the {owner[flag.name]} and of the "
                    f"{group.title}; one must have another name"
                )
            owner[flag.name], types_of[flag.name] = group.title, flag.annotation
        collect = _collector(flags, group.function)
        kind = Annotated[dict, tyro.conf.arg(constructor=collect)]
        fields.append(
            inspect.Parameter(group.title, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
        )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed, unknown = tyro.cli(
                _collector(fields, command),
                prog=prog,
                args=words,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_complaint(said.getvalue(), words, types_of)) from None
    if unknown:
        known = ["--" + name.replace("_", "-") for name in types_of]
        see = f"; {prog} --help shows all flags"
        flag = unknown[0].partition("=")[0]
        if flag.startswith("-"):
            near = instead(flag.replace("_", "-"), known)
            raise ValueError(f"unknown flag {flag}{near or see}")
        raise ValueError(f"unexpected argument {flag!r}{see}")
    groups_given = [parsed.pop(group.title) for group in groups]
    return [parsed, *groups_given]


def instead(word: str, known: Iterable[str]) -> str:
    """Suggest the known word nearest to one that is not, if any is near."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _original(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def _collector(
    flags: list[inspect.Parameter], function: Callable[..., Any] | None
) -> Callable[..., dict[str, Any]]:
    """Make a function of some flags, with the help of another, that returns what it is given."""

    def collect(**given: Any) -> dict[str, Any]:
        return given

    collect.__signature__ = inspect.Signature(flags)  # pyright: ignore[reportFunctionMemberAccess]
    collect.__annotations__ = {flag.name: flag.annotation for flag in flags}
    doc = (function and inspect.getdoc(_original(function))) or ""
    # The lines of a paragraph or an argument joined, to be broken where the terminal ends.
    collect.__doc__ = re.sub(r"(?<=\S)\n( {5,})?(?=\S)", " ", doc.replace("`", ""))
    return collect


def _complaint(box: str, words: list[str], types_of: dict[str, Any]) -> str:
    """Say in one line what tyro found wrong with a command line, for which it draws a box."""
    found = re.search(r"(?<!-)--[a-z][\w-]*", box)
    if found is None or (name := found[0][2:].replace("-", "_")) not in types_of:
        return re.sub("[╭╮╰╯│─|+]|-{3,}", " ", box)
    flag, given, kind = found[0], _given(found[0], words), types_of[name]
    kind = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    if kind == bool | None:
        choices = (True, False, None)
    wanted = re.sub(r"\b\w+\.", "", inspect.formatannotation(kind))
    if choices:
        wanted = f"one of {', '.join(map(str, choices))}"
    if not given:
        return f"{flag} needs a value, {wanted}"
    return f"{flag} must be {wanted}, got {given!r}{instead(given, map(str, choices))}"


def _given(flag: str, words: list[str]) -> str:
    """Return what a command line last gives to a flag."""
    given = ""
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("_", "-") == flag:
            after = itertools.takewhile(lambda word: not word.startswith("--"), words[i + 1 :])
            given = value or " ".join(after)
    return given

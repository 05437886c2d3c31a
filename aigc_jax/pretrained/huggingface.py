"""Directories as Hugging Face's libraries write them: a configuration, and weights in safetensors.

Weights are read and written one tensor at a time, so that no second copy of them is ever whole.
They lie in one file, `model.safetensors`, or in several, of which `model.safetensors.index.json`
tells what lies where.
"""

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax.files import write_json, write_whole

CONFIG = "config.json"
SHARD = 5 * 10**9  # bytes

# What safetensors calls the types that weights have.
FLOATS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Shapes = Mapping[tuple[str, ...], jax.ShapeDtypeStruct]


class Tensor(NamedTuple):
    """A tensor of theirs, and what it is of ours: reshaped, transposed, and put in its place.

    Attributes:
        name: theirs.
        shape: theirs.
        path: of our parameter.
        split: the shape to give it.
        axes: of that, in our order.
        at: where in our parameter it goes, such as a layer's index; () is all of it.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]
    at: tuple[int | slice, ...] = ()


class Weights(NamedTuple):
    """The tensors of a directory, of which none is read yet.

    Attributes:
        path: of the file that holds them, or tells where they are.
        files: the open file of each, by name.
    """

    path: Path
    files: Mapping[str, Any]


def linear(
    name: str,
    path: tuple[str, ...],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    *,
    order: tuple[int, ...] | None = None,
    inputs_first: bool = False,
    at: tuple[int | slice, ...] = (),
    slot: tuple[int | slice, ...] = (),
    bias: bool = True,
) -> list[Tensor]:
    """List the kernel and the bias of a linear layer, whose axes there are all inputs or outputs.

    Args:
        name: theirs, of the layer.
        path: ours, of the layer.
        inputs: the axes that one of theirs is made of, outermost first.
        outputs: ditto.
        order: of the outputs here; None is theirs.
        inputs_first: whether theirs has the inputs before the outputs.
        at: where in our parameters the layer lies, before the inputs.
        slot: ditto, after the inputs.
        bias: whether there is one.
    """
    n, m = len(inputs), len(outputs)
    order = order or tuple(range(m))
    sizes = math.prod(inputs), math.prod(outputs)
    if inputs_first:
        split, axes = (*inputs, *outputs), (*range(n), *(n + i for i in order))
    else:
        split, axes = (*outputs, *inputs), (*range(m, m + n), *order)
        sizes = sizes[::-1]
    own = (*at, *(slice(None) for _ in inputs), *slot) if slot else at
    tensors = [Tensor(f"{name}.weight", sizes, (*path, "kernel"), split, axes, own)]
    if bias:
        size, own = (math.prod(outputs),), (*at, *slot)
        tensors.append(Tensor(f"{name}.bias", size, (*path, "bias"), outputs, order, own))
    return tensors


def same(
    name: str, path: tuple[str, ...], shape: tuple[int, ...], at: tuple[int | slice, ...] = ()
) -> Tensor:
    """Make a tensor that is the same there and here."""
    return Tensor(name, shape, path, shape, tuple(range(len(shape))), at)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file of options.

    Raises:
        FileNotFoundError: it or its directory is not there.
        ValueError: it holds something else.
    """
    for place in (path.parent, path):
        if not place.exists():
            raise FileNotFoundError(f"{place} does not exist")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not names and values")
    return config


def refuse_unless(options: Mapping[str, Any], name: str, holds: bool, allowed: str) -> None:
    """Refuse an option's value, unless it holds.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    if not holds:
        raise ValueError(f"{name}={options[name]!r} is not supported: it must be {allowed}")


def check_options(
    options: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]], counts: Sequence[str] = ()
) -> None:
    """Refuse options that are not among the supported values, or not numbers to count by.

    Raises:
        ValueError: as `refuse_unless`.
    """
    for name, allowed in supported.items():
        refuse_unless(options, name, options[name] in allowed, " or ".join(map(repr, allowed)))
    for name in counts:
        refuse_unless(options, name, is_count(options[name]), "an integer of at least 1")


def is_count(value: Any) -> bool:
    """Tell whether a value of JSON is an integer of at least 1."""
    return type(value) is int and value > 0


def shapes_of(init: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[tuple[str, ...], Any]:
    """Return the shapes of the parameters that a network's `init` makes, by path."""
    variables = jax.eval_shape(lambda: init(jax.random.key(0), *args, **kwargs))
    shapes: Any = flatten_dict(variables["params"])
    return shapes


@contextlib.contextmanager
def open_weights(directory: str | Path, stem: str = "model") -> Iterator[Weights]:
    """Open the weights of a directory: `STEM.safetensors`, or `STEM.safetensors.index.json`.

    Raises:
        FileNotFoundError: there are none, or one of several files is not there.
        ValueError: they are there as a pickle only, or a file is not whole, or the index is wrong.
    """
    from safetensors import SafetensorError, safe_open

    directory = Path(directory)
    whole, index = (directory / f"{stem}.safetensors{end}" for end in ("", ".index.json"))
    path, places = whole, {}
    if not whole.exists():
        if index.exists():
            path, places = index, _read_index(index)
        elif pickles := sorted(p.name for p in directory.glob("*") if p.suffix in PICKLES):
            raise ValueError(
                f"{directory} has its weights only as a pickle, {pickles[0]}, which may run any"
                f" code when it is loaded; save them as {whole.name}"
            )
        else:
            raise FileNotFoundError(f"{whole} does not exist")

    files: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for name in sorted(set(places.values())) or [whole.name]:
            file = directory / name
            if not file.exists():
                raise FileNotFoundError(f"{file} does not exist, which {index.name} names")
            try:
                opened = stack.enter_context(safe_open(file, "numpy"))
            except SafetensorError as error:
                raise ValueError(f"{file} is not whole: {error}") from None
            found = set(opened.keys())
            if places:
                said = {key for key, place in places.items() if place == name}
                compare(
                    dict.fromkeys(said, ()),
                    dict.fromkeys(found, ()),
                    f"{file} does not hold what {index.name} says",
                )
            files |= dict.fromkeys(found, opened)
        yield Weights(path, files)


def read_params(
    weights: Weights,
    tensors: Sequence[Tensor],
    shapes: Shapes,
    *,
    rename: Callable[[str], str | None] = lambda name: name,
    dtype: Any = jnp.float32,
    of: str = CONFIG,
) -> dict[str, Any]:
    """Read parameters, each of one or several tensors.

    Args:
        weights: see `open_weights`.
        tensors: what to read: all of it has to be there, and nothing else.
        shapes: of the parameters, by path. What no tensor covers is 0.
        rename: `name -> name` of one of `tensors`, which may have several, or None for what is to
            be left out.
        dtype: of the parameters.
        of: what says what to read, for the complaint.

    Returns:
        The parameters, nested.

    Raises:
        ValueError: names are missing or unexpected, a shape or a type is not right, or tensors of
            two names that mean the same differ.
    """
    names: dict[str, list[str]] = {}
    for found in sorted(weights.files):
        if (name := rename(found)) is not None:
            names.setdefault(name, []).append(found)
    expected = {tensor.name: tensor.shape for tensor in tensors}
    view = {found: file.get_slice(found) for found, file in weights.files.items()}
    complaint = f"{weights.path} does not fit its {of}"
    shape = lambda found: tuple(view[found].get_shape())
    # What is unexpected, by the name that it has; and each of several names has to fit.
    compare(
        expected,
        {name if name in expected else alias[0]: shape(alias[0]) for name, alias in names.items()},
        complaint,
    )
    for name, aliases in names.items():
        for found in aliases:
            if shape(found) != expected[name]:
                raise ValueError(f"{complaint}: {found} is {shape(found)}, not {expected[name]}")
            if view[found].get_dtype() not in FLOATS.values():
                said = ", ".join(FLOATS.values())
                raise ValueError(
                    f"{weights.path}: {found} is {view[found].get_dtype()}; weights are {said}"
                )

    def get(name: str) -> np.ndarray:
        first, *others = names[name]
        array = weights.files[first].get_tensor(first)
        for other in others:
            if not np.array_equal(array, weights.files[other].get_tensor(other), equal_nan=True):
                raise ValueError(
                    f"{weights.path}: {other} differs from {first}, which it has to be"
                )
        return array

    params = {}
    by_path = lambda tensor: tensor.path
    for path, parts in itertools.groupby(sorted(tensors, key=by_path), by_path):
        parameter = np.zeros(shapes[path].shape, dtype)
        for tensor in parts:
            array = get(tensor.name).reshape(tensor.split).transpose(tensor.axes)
            parameter[tensor.at] = array.reshape(parameter[tensor.at].shape)
        params[path] = jnp.asarray(parameter)
    return unflatten_dict(params)


def write_params(
    directory: str | Path,
    params: Mapping[str, Any],
    tensors: Sequence[Tensor],
    shapes: Shapes,
    config: Mapping[str, Any],
    *,
    network: str,
    dtype: Any = None,
    shard: int = SHARD,
    stem: str = "model",
    config_name: str = CONFIG,
) -> None:
    """Write a directory for `from_pretrained` to load, all its files or none of them.

    Args:
        directory: made if need be; its configuration and weights are replaced.
        params: the parameters.
        tensors: what to write of them.
        shapes: that they must have.
        config: what goes beside them.
        network: whose they are, for the complaint.
        dtype: to write them in; None is that of each parameter.
        shard: the most bytes of a file, but that a tensor is in one; beyond it there are several.
        stem: of the weights' files.
        config_name: of the configuration's.

    Raises:
        ValueError: the parameters are not the network's, or not floating.
        OSError: a file cannot be written; those already there stay.
    """
    arrays: Any = flatten_dict(params)
    compare(
        {"/".join(path): leaf.shape for path, leaf in shapes.items()},
        {"/".join(path): np.shape(array) for path, array in arrays.items()},
        f"params are not this {network}'s",
    )
    directory = Path(directory)
    kinds = {path: np.dtype(dtype or array.dtype) for path, array in arrays.items()}
    for kind in kinds.values():
        if kind.name not in FLOATS:
            raise ValueError(f"dtype={kind.name} must be one of {', '.join(FLOATS)}")
    size = lambda tensor: math.prod(tensor.shape) * kinds[tensor.path].itemsize

    # All layers of a parameter one after another: it comes from its device once.
    files: list[list[Tensor]] = [[]]
    for tensor in sorted(tensors, key=lambda tensor: tensor.path):
        if files[-1] and sum(map(size, files[-1])) + size(tensor) > shard:
            files.append([])
        files[-1].append(tensor)
    n = len(files)
    named = lambda i: (
        f"{stem}-{i + 1:05d}-of-{n:05d}.safetensors" if n > 1 else f"{stem}.safetensors"
    )
    index = directory / f"{stem}.safetensors.index.json"

    def write(i: int) -> None:
        if i < n:

            def save(partial: Path) -> None:
                _write_tensors(partial, files[i], arrays, kinds)
                # Here, so that what cannot be written (a full disk) replaces no file.
                write(i + 1)

            write_whole(directory / named(i), save)
        elif i == n and n > 1:
            places = {tensor.name: named(i) for i in range(n) for tensor in files[i]}
            total = sum(map(size, itertools.chain(*files)))
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)

            def save_index(partial: Path) -> None:
                partial.write_text(text + "\n", encoding="utf-8")
                write(i + 1)

            write_whole(index, save_index)
        else:
            write_json(directory / config_name, config)

    write(0)
    # What was there before would be read in place of this, or beside it.
    kept = {named(i) for i in range(n)} | ({index.name} if n > 1 else set())
    former = (f"{stem}.safetensors", f"{stem}-?????-of-?????.safetensors", index.name)
    for old in itertools.chain(*map(directory.glob, former)):
        if old.name not in kept:
            old.unlink()


def compare(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], complaint: str
) -> None:
    """Hold the names and shapes of some arrays against others.

    Raises:
        ValueError: they differ; all that does is listed.
    """
    wrong = [
        *(f"{name} is missing" for name in sorted(expected.keys() - found.keys())),
        *(f"{name} is unexpected" for name in sorted(found.keys() - expected.keys())),
        *(
            f"{name} is {found[name]}, not {expected[name]}"
            for name in sorted(expected.keys() & found.keys())
            if found[name] != expected[name]
        ),
    ]
    if wrong:
        raise ValueError(f"{complaint}: {', '.join(wrong)}")


def _read_index(path: Path) -> dict[str, str]:
    places = read_config(path).get("weight_map")
    # Beside the index: a name that leads elsewhere is not one that anybody has written.
    beside = lambda name: isinstance(name, str) and name == Path(name).name
    if not isinstance(places, dict) or not places or not all(map(beside, places.values())):
        raise ValueError(f"{path} has no weight_map of names and files beside it")
    return places


def _write_tensors(
    path: Path, tensors: Sequence[Tensor], arrays: Mapping[tuple[str, ...], Any], kinds: Mapping
) -> None:
    """Write a file of safetensors; the library would want all of it in memory first."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        kind = kinds[tensor.path]
        begin, end = end, end + math.prod(tensor.shape) * kind.itemsize
        header[tensor.name] = {
            "dtype": FLOATS[kind.name],
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    said = json.dumps(header, separators=(",", ":")).encode()
    said += b" " * (-len(said) % 8)
    with path.open("wb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        for of, parts in itertools.groupby(tensors, lambda tensor: tensor.path):
            parameter = np.asarray(arrays[of])
            for tensor in parts:
                back = np.argsort(tensor.axes)
                part = parameter[tensor.at].reshape([tensor.split[axis] for axis in tensor.axes])
                array = part.transpose(back).reshape(tensor.shape)
                file.write(np.ascontiguousarray(array.astype(kinds[of], copy=False)).tobytes())

"""Data sets that TensorFlow Datasets has prepared, opened without TensorFlow."""

import difflib
import os
from pathlib import Path
from typing import Any


def open_builder(name: str, data_dir: str | None = None) -> Any:
    """Return the builder of a prepared data set.

    Args:
        name: as TFDS knows it: `mnist`, `emnist/letters`, `cifar10:3.0.2`.
        data_dir: where it was prepared; by default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
        FileNotFoundError: the folder or the data set is not there; names what is.
    """
    import tensorflow_datasets

    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"tfds name={name!r}: no folder {root}; set TFDS_DATA_DIR to where it was prepared"
        )
    there = sorted(path.name for path in root.iterdir() if path.is_dir())
    near = difflib.get_close_matches(name, there, 1)
    instead = (f"did you mean {near[0]!r}? " if near else "") + f"{root} holds {there}"
    try:
        builder = tensorflow_datasets.builder(name, data_dir=root)
    # TFDS asserts that it knows the version.
    except (tensorflow_datasets.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise FileNotFoundError(f"no tfds data set name={name!r}; {instead}") from error
    if not builder.info.splits:
        raise FileNotFoundError(
            f"tfds data set name={name!r} is not prepared (tfds build {name} "
            f"--file_format=array_record); {instead}"
        )
    return builder


def find_feature(name: str, features: Any, kind: type, usual: str) -> str | None:
    """Return the name of the one feature of a kind, the usual one if there are several.

    Raises:
        ValueError: there are several, and none has the usual name.
    """
    found = [key for key, feature in features.items() if isinstance(feature, kind)]
    if len(found) > 1 and usual not in found:
        raise ValueError(f"tfds name={name!r} has several features {found} and none is {usual!r}")
    return usual if usual in found else next(iter(found), None)


def read_split(builder: Any, split: str, **options: Any) -> Any:
    """Return the records of a split, by random access.

    Args:
        builder: of `open_builder`.
        split: its name.
        **options: of TFDS's `as_data_source`.

    Raises:
        ValueError: the data set was prepared in a format that cannot be read at random.
    """
    try:
        return builder.as_data_source(split, file_format="array_record", **options)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"tfds name={builder.name!r} is prepared as {builder.info.file_format.value}, which "
            f"cannot be read at random; prepare it by tfds build {builder.name} "
            "--file_format=array_record"
        ) from error

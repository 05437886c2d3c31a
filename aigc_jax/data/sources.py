"""Data sets: random access to raw examples, in memory or decoded as they are read."""

import functools
import io
import itertools
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from aigc_jax.data.prepared import find_feature, open_builder, read_split

Examples = dict[str, np.ndarray]

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for each number of channels
HELD_OUT = ("test", "val", "validation")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class Source(Protocol):
    """Random access to raw examples: `image` (b, h, w, c) uint8, perhaps `label` (b,) int32."""

    def __len__(self) -> int: ...

    def read(self, index: np.ndarray) -> Examples:
        """Return the examples at (b,) integer positions, in that order."""
        ...


class Dataset(NamedTuple):
    """Two splits of one data set.

    Attributes:
        train: what models learn from.
        test: what they are judged on.
        classes: the names of the labels 0, 1, ...; empty where examples have no label.
        name: as it appears in logs and in the names of metrics.
    """

    train: Source
    test: Source
    classes: tuple[str, ...]
    name: str


@dataclass(frozen=True, eq=False)
class Memory:
    """Examples held as arrays that share their leading length."""

    columns: Examples = field(repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def read(self, index: np.ndarray) -> Examples:
        """Return the examples at (b,) integer positions, in that order."""
        return {name: column.take(index, axis=0) for name, column in self.columns.items()}


@dataclass(frozen=True, eq=False)
class Stream:
    """Examples decoded each time they are read, for sets larger than memory."""

    length: int
    load: Callable[[np.ndarray], Examples]

    def __len__(self) -> int:
        return self.length

    def read(self, index: np.ndarray) -> Examples:
        """Decode the examples at (b,) integer positions, in that order."""
        return self.load(index)


class Kept:
    """Examples decoded the first time they are read and then held in memory.

    Nothing waits for a whole set to be decoded: the first epoch decodes as it goes, and whoever
    needs a single batch pays for a single batch.
    """

    def __init__(self, length: int, load: Callable[[np.ndarray], Examples]):
        self.length = length
        self.load = load
        self.columns: Examples = {}
        self.done = np.zeros(length, bool)

    def __len__(self) -> int:
        return self.length

    def read(self, index: np.ndarray) -> Examples:
        """Return the examples at (b,) integer positions, in that order, decoding the new ones."""
        fresh = np.unique(index[~self.done[index]])
        if len(fresh):
            for name, values in self.load(fresh).items():
                column = self.columns.setdefault(
                    name, np.empty((self.length, *values.shape[1:]), values.dtype)
                )
                column[fresh] = values
            # Only now: a second thread may decode the same examples again, but never reads a gap.
            self.done[fresh] = True
        return {name: column.take(index, axis=0) for name, column in self.columns.items()}


@dataclass(frozen=True, eq=False)
class Replayed:
    """A source of new examples, among which a share of old ones stand.

    Attributes:
        new: each of which is there once.
        old: of which as many as make up the share are, evenly taken.
        share: of the old ones.
    """

    new: Source
    old: Source
    share: float

    def __len__(self) -> int:
        return len(self.new) + self.replayed

    @property
    def replayed(self) -> int:
        """How many old examples there are."""
        return round(len(self.new) * self.share / (1 - self.share))

    def read(self, index: np.ndarray) -> Examples:
        """Return the examples at (b,) integer positions; the old ones come behind the new."""
        index = np.asarray(index)
        is_old = index >= len(self.new)
        # The golden ratio's multiples lie evenly, however many are taken.
        places = np.modf((index - len(self.new)) * 0.6180339887498949)[0] % 1 * len(self.old)
        new = self.new.read(np.where(is_old, 0, index))
        old = self.old.read(np.where(is_old, places, 0).astype(np.int64))
        pick = lambda a, b: np.where(is_old.reshape(-1, *[1] * (a.ndim - 1)), b, a)
        return {name: pick(new[name], old[name]) for name in new}


def arrays(
    train: Mapping[str, Any],
    test: Mapping[str, Any],
    classes: Sequence[str] = (),
    name: str = "arrays",
) -> Dataset:
    """Make a data set of arrays already in memory.

    Args:
        train: name -> array of (n, ...): `image` uint8, `label` integer, or what your task reads.
        test: the same names, each (m, ...).
        classes: the names of the labels.
        name: the data set's.

    Raises:
        ValueError: a split is empty, its arrays differ in length, or `image` is not (n, h, w, c)
            uint8.

    Example:
        >>> image = np.zeros((6, 4, 4, 1), np.uint8)
        >>> data = arrays({"image": image}, {"image": image[:2]})
        >>> len(data.train), data.train.read(np.array([5, 0]))["image"].shape
        (6, (2, 4, 4, 1))
    """

    def memory(split: str, columns: Mapping[str, Any]) -> Memory:
        held = {key: np.asarray(value) for key, value in columns.items()}
        lengths = {key: value.shape[:1] for key, value in held.items()}
        if len(set(lengths.values())) != 1 or not all(map(all, lengths.values())):
            raise ValueError(
                f"{split} must hold arrays of one leading length of at least 1, got {lengths}"
            )
        image = held.get("image")
        if image is not None and (image.ndim != 4 or image.dtype != np.uint8):
            raise ValueError(
                f"{split}['image'] must be (n, h, w, c) uint8, got {image.shape} {image.dtype}"
            )
        if "label" in held:
            held["label"] = held["label"].astype(np.int32)
        return Memory(held)

    return Dataset(memory("train", train), memory("test", test), tuple(classes), name)


def digits() -> Dataset:
    """Load the 1,797 handwritten 8×8 digits that come with scikit-learn.

    Grey levels v, 0 to 16, become round(255 v / 16). The split is fixed and stratified by class:
    1,437 to train, 360 to test.

    Example:
        >>> data = digits()
        >>> len(data.train), len(data.test), data.train.read(np.arange(2))["image"].shape
        (1437, 360, (2, 8, 8, 1))
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, label = load_digits(return_X_y=True)
    image = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    train, test = train_test_split(
        np.arange(len(image)), test_size=360, stratify=label, random_state=0
    )
    return arrays(
        {"image": image[train], "label": label[train]},
        {"image": image[test], "label": label[test]},
        classes=tuple("0123456789"),
        name="digits",
    )


def dataset(where: str, *, size: int | None = None, channels: int | None = None) -> Dataset:
    """Open what a command line names: `digits`, a folder, an .npz file, or else a TFDS name.

    An .npz file holds `train_image` and `test_image`, (n, h, w, c) uint8, and `train_label` and
    `test_label`, (n,), if there are labels.

    Args:
        where: the name or the path.
        size: the side to which images are scaled, in pixels; a folder needs it.
        channels: 1, 3 or 4; by default as stored, and 3 of a folder.

    Raises:
        FileNotFoundError: there is no such file or data set.
        ValueError: a folder was named and no size, or the file does not hold such arrays.
    """
    if where == "digits":
        return digits()
    if Path(where).is_dir():
        if size is None:
            raise ValueError(f"the folder {where} needs size=, in pixels")
        return folder(where, size, channels=channels or 3)
    if where.endswith(".npz"):
        with np.load(where) as file:
            columns = dict(file)
        if "train_image" not in columns or "test_image" not in columns:
            raise ValueError(f"{where} holds {sorted(columns)}; it needs train_image, test_image")
        split = lambda which: {
            name.removeprefix(which): column
            for name, column in columns.items()
            if name.startswith(which)
        }
        labels = columns.get("train_label", np.zeros(0, np.int32))
        classes = tuple(map(str, range(int(labels.max()) + 1))) if len(labels) else ()
        return arrays(split("train_"), split("test_"), classes, Path(where).stem)
    return tfds(where, size=size, channels=channels)


def decode(
    file: Path | bytes, channels: int, size: int | None = None, *, name: str | None = None
) -> np.ndarray:
    """Decode one image file to (h, w, channels) uint8.

    Args:
        file: a path, or the bytes of a file.
        channels: 1 grey, 3 RGB, 4 RGBA. What is transparent is laid over white unless it is 4.
        size: the side to which the image is scaled and, where it is not square, centre-cropped.
        name: what an error calls the file; its path by default.

    Raises:
        ValueError: the file cannot be read as an image; names it.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if (
                size is not None
            ):  # a JPEG is decoded at ½, ¼ or ⅛ where that still is twice the size
                image.draft(None, (2 * size, 2 * size))
            if isinstance(file, Path):  # a photograph says in its EXIF data which way is up
                image = ImageOps.exif_transpose(image)
            if channels < 4 and image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey levels to 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode != MODES[channels]:
                image = image.convert(MODES[channels])
            if size is not None and image.size != (size, size):
                image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
            pixels = np.asarray(image)
    except Exception as error:  # a damaged file makes Pillow's plugins raise almost anything
        name = name or (str(file) if isinstance(file, Path) else "the file")
        raise ValueError(f"{name} is not a readable image: {error}") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]  # (h, w) -> (h, w, 1)


def tfds(
    name: str,
    data_dir: str | None = None,
    *,
    size: int | None = None,
    channels: int | None = None,
    memory_limit: int = 2 * 1024**3,
) -> Dataset:
    """Open a prepared TensorFlow data set of images, without TensorFlow.

    It needs a `train` split and a `test` or `validation` split in the array_record format. A set
    whose pixels fit in memory is decoded once, as it is first read; a larger one at every reading.

    Args:
        name: as TFDS knows it: `mnist`, `emnist/letters`, `cifar10:3.0.2`.
        data_dir: where it was prepared; by default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        size: the side to which images are scaled and centre-cropped, in pixels; by default they
            stay as they are.
        channels: 1, 3 or 4; by default as stored. RGBA is laid over white where it is not 4.
        memory_limit: bytes of pixels, both splits together, above which nothing is kept in memory.

    Raises:
        FileNotFoundError: the folder or the data set is not there; names what is.
        ValueError: the data set lacks such splits or has no image, or its images differ in size and
            `size` is not given.
    """
    import tensorflow_datasets

    _check(size, channels)
    builder = open_builder(name, data_dir)
    splits = list(builder.info.splits)
    held_out = next((split for split in ("test", "validation") if split in splits), None)
    if "train" not in splits or held_out is None:
        raise ValueError(
            f"tfds name={name!r} needs the splits train and test (or validation), has {splits}"
        )

    features = builder.info.features
    pixels = find_feature(name, features, tensorflow_datasets.features.Image, "image")
    if pixels is None:
        raise ValueError(f"tfds name={name!r} has no image among its features, {list(features)}")
    target = find_feature(name, features, tensorflow_datasets.features.ClassLabel, "label")
    *sides, stored = features[pixels].shape
    if features[pixels].np_dtype != np.uint8:
        raise ValueError(f"tfds name={name!r} stores {features[pixels].np_dtype} images, not uint8")
    if size is None and None in sides:
        raise ValueError(f"the images of tfds name={name!r} differ in size: give size=, in pixels")
    depth: int = channels or stored or 3
    height, width = (size, size) if size else sides
    count = sum(builder.info.splits[which].num_examples for which in ("train", held_out))
    kind = Kept if count * height * width * depth <= memory_limit else Stream

    def split(which: str) -> Source:
        # Pillow decodes the pixels, several times as fast as TFDS does without TensorFlow.
        raw = tensorflow_datasets.decode.DeserializeMethod.RAW_BYTES
        records = read_split(builder, which, deserialize_method=raw)
        load = functools.partial(
            _load_records, records, f"tfds {name} {which}", pixels, target, depth, size
        )
        return kind(len(records), load)

    classes = tuple(features[target].names) if target else ()
    return Dataset(split("train"), split(held_out), classes, name)


def _check(size: int | None, channels: int | None) -> None:
    if size is not None and size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel")
    if channels is not None and channels not in MODES:
        raise ValueError(f"channels={channels} must be one of {list(MODES)}")


def _load_records(
    records: Any,
    where: str,
    pixels: str,
    target: str | None,
    channels: int,
    size: int | None,
    index: np.ndarray,
) -> Examples:
    from tensorflow_datasets.proto import tf_example_pb2

    images, labels = [], []
    for i, record in zip(index, records.__getitems__(index.tolist()), strict=True):
        parsed = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
        stored = parsed.features.feature
        file = stored[pixels].bytes_list.value[0]
        images.append(decode(file, channels, size, name=f"example {i} of {where}"))
        if target:
            labels.append(stored[target].int64_list.value[0])
    examples = {"image": np.stack(images)}
    return examples | {"label": np.array(labels, np.int32)} if target else examples


def folder(
    path: str | Path,
    size: int,
    *,
    on_error: Literal["skip", "refuse"] = "refuse",
    channels: int = 3,
    test_fraction: float = 0.1,
    memory_limit: int = 2 * 1024**3,
) -> Dataset:
    """Open a folder of images, in one subfolder per class or in none.

    Which files are held out depends on their names alone: of each class, the given fraction whose
    names' checksums are lowest. A folder that is already divided, into `train` and `test` (or
    `val`, `validation`), stays so.

    Args:
        path: the folder. Files that do not end as images do are ignored.
        size: the side to which images are scaled and centre-cropped, in pixels.
        on_error: `skip` decodes every file when the folder is opened, and leaves out those that
            cannot be read, in one warning that names them; `refuse` raises at the first one, when
            the folder is opened if it fits in memory, else when the file is met.
        channels: 1 grey, 3 RGB, 4 RGBA. What is transparent is laid over white unless it is 4.
        test_fraction: the share of each class that is held out, in [0, 1).
        memory_limit: bytes of pixels above which nothing is kept in memory.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: an unreadable file under `refuse`, images beside subfolders of images, or an
            argument out of range.
    """
    root = Path(path)
    _check(size, channels)
    if on_error not in ("skip", "refuse"):
        raise ValueError(f"on_error={on_error!r} must be 'skip' or 'refuse'")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction} must be in [0, 1)")
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")

    below = {each.name: each for each in _subfolders(root)}
    held_out = next((each for each in HELD_OUT if each in below), None)
    if held_out and "train" in below and set(below) <= {"train", *HELD_OUT}:
        split = {"train": _files(below["train"]), "test": _files(below[held_out])}
    else:
        split = {"train": {}, "test": {}}
        for label, files in _files(root).items():
            ordered = sorted(files, key=lambda file: (zlib.crc32(file.name.encode()), file))
            count = round(test_fraction * len(files))
            split["test"][label] = sorted(ordered[:count])
            split["train"][label] = sorted(ordered[count:])
    classes = tuple(sorted({*split["train"], *split["test"]}))
    entries = {
        which: [(file, classes.index(label)) for label, files in labels.items() for file in files]
        for which, labels in split.items()
    }
    count = sum(map(len, entries.values()))
    keep = count * size * size * channels <= memory_limit
    skipped: list[str] = []

    def source(which: str) -> Source:
        files = [file for file, _ in entries[which]]
        labels = np.array([label for _, label in entries[which]], np.int32)
        image = np.empty((len(files) if keep else 0, size, size, channels), np.uint8)
        readable = np.ones(len(files), bool)
        if keep or on_error == "skip":
            with ThreadPoolExecutor() as pool:
                for i, pixels in enumerate(pool.map(attempt, files)):
                    if isinstance(pixels, np.ndarray):
                        image[i : i + keep] = pixels  # none of it if nothing is kept
                    elif on_error == "skip":
                        readable[i] = False
                        skipped.append(str(pixels))
                    else:
                        raise pixels
        if which == "train" and not readable.any():
            raise FileNotFoundError(f"no readable image to train on in {root}; skipped: {skipped}")
        labels = labels[readable] if classes != ("",) else None
        if keep:
            examples = {"image": image[readable]}
            return Memory(examples if labels is None else examples | {"label": labels})
        chosen = [file for file, good in zip(files, readable, strict=True) if good]
        load = functools.partial(_load_files, chosen, labels, channels, size)
        return Stream(len(chosen), load)

    def attempt(file: Path) -> np.ndarray | ValueError:
        try:
            return decode(file, channels, size)
        except ValueError as error:
            return error

    train, test = source("train"), source("test")
    if skipped:
        warnings.warn(
            f"skipped {len(skipped)} of {count} files: {'; '.join(skipped)}", stacklevel=2
        )
    return Dataset(train, test, classes if classes != ("",) else (), root.resolve().name)


def stacked(
    data: Dataset,
    *,
    train: int = 128_000,
    test: int = 26_000,
    seed: int = 0,
    memory_limit: int = 2 * 1024**3,
) -> Dataset:
    """Stack random triples of grey images as the channels of colour ones: Stacked-MNIST.

    k classes become k³ modes, which can be counted (`metrics.modes`). Which triples is drawn once;
    their images are gathered as they are read.

    Args:
        data: grey images; each split's triples are of that split alone.
        train: how many triples to learn from; 128,000 in the literature.
        test: how many to judge on.
        seed: of the triples.
        memory_limit: bytes of pixels, both splits together, above which what was gathered is not
            kept in memory.

    Returns:
        `image` (h, w, 3) uint8 and, where `data` names its classes, `label` (k a + b) k + c of the
        channels' labels a, b and c.

    Raises:
        ValueError: the images are not grey, or an argument is out of range.

    Example:
        >>> data = stacked(digits(), train=1000, test=100)
        >>> data.train.read(np.arange(2))["image"].shape, data.classes[42]
        ((2, 8, 8, 3), '042')

    Reference: Metz et al. 2017, "Unrolled generative adversarial networks", section 3.3.1.
    """
    for name, value, low in (("train", train, 1), ("test", test, 1), ("seed", seed, 0)):
        if value < low:
            raise ValueError(f"{name}={value} must be at least {low}")
    shape = data.train.read(np.zeros(1, np.int64))["image"].shape[1:]
    if shape[-1] != 1:
        raise ValueError(f"stacked needs grey images (h, w, 1); those of {data.name} are {shape}")
    kind = Kept if 3 * (train + test) * math.prod(shape) <= memory_limit else Stream

    def split(source: Source, count: int, stream: int) -> Source:
        rng = np.random.default_rng([seed, stream])
        triples = rng.integers(len(source), size=(count, 3), dtype=np.int32)
        return kind(count, functools.partial(_load_stacked, source, triples, len(data.classes)))

    gap = "" if max(map(len, data.classes), default=0) == 1 else "-"
    return Dataset(
        split(data.train, train, 0),
        split(data.test, test, 1),
        tuple(map(gap.join, itertools.product(data.classes, repeat=3))) if data.classes else (),
        f"stacked_{data.name}",
    )


def _load_stacked(source: Source, triples: np.ndarray, classes: int, index: np.ndarray) -> Examples:
    parts = [source.read(grey) for grey in triples[index].T]
    image = np.concatenate([part["image"] for part in parts], axis=-1)  # -> (b, h, w, 3)
    if not classes:
        return {"image": image}
    a, b, c = (part["label"] for part in parts)
    return {"image": image, "label": (a * classes + b) * classes + c}


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(root: Path) -> dict[str, list[Path]]:
    """Return a folder's images by class; the class is "" where there are no subfolders."""

    def images(paths: Iterable[Path]) -> list[Path]:
        return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)

    loose = images(root.iterdir())
    classes = {each.name: images(each.rglob("*")) for each in _subfolders(root)}
    classes = {name: files for name, files in classes.items() if files}
    if loose and classes:
        raise ValueError(
            f"{root} holds images itself ({loose[0].name}, ...) and in subfolders "
            f"({', '.join(classes)}): use one subfolder per class, or none"
        )
    return classes or {"": loose}


def _load_files(
    files: list[Path], labels: np.ndarray | None, channels: int, size: int, index: np.ndarray
) -> Examples:
    examples = {"image": np.stack([decode(files[i], channels, size) for i in index])}
    return examples if labels is None else examples | {"label": labels[index]}

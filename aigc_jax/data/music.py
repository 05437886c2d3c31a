"""Music in four voices: Bach's chorales, cut into segments of a few bars.

A frame is a sixteenth. Its notes are tokens of one vocabulary common to the voices: 0 is silence,
and 1, 2, … the pitches from the lowest that a bass sings to the highest of a soprano. Vocabularies
of one voice each would be shorter by half, but then no voice could be transposed beyond what it
happens to sing, and a C would be another token in every voice, to be learnt four times over.
"""

from typing import Any

import numpy as np

from aigc_jax.data.prepared import open_builder, read_split
from aigc_jax.data.sources import Dataset, Examples, arrays
from aigc_jax.data.transforms import Address, Addressed

LOWEST, HIGHEST = 36, 81  # MIDI pitches of the chorales, C2 to A5
VOCABULARY = HIGHEST - LOWEST + 2
VOICES = 4  # soprano, alto, tenor, bass
QUARTER, BAR = 4, 16  # frames


def chorales(
    data_dir: str | None = None, *, bars: int = 2, hop: int = BAR, held_out: str = "test"
) -> Dataset:
    """Load segments of the 382 chorales of TFDS's `jsb_chorales`, without TensorFlow.

    Chorales that open with an upbeat are not moved: a segment begins at a bar line of a chorale
    that does without one, and may begin at another quarter of one that has it.

    Args:
        data_dir: where it was prepared; by default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        bars: of 16 frames, of a segment.
        hop: frames from the start of a segment to the next one's in training; held-out segments
            begin a bar apart. Less makes more of the same music, in other places of a segment.
        held_out: `test` or `validation`.

    Returns:
        `pitches` (n, 16 · bars, 4) int32, tokens from 0 to 46 of soprano, alto, tenor and bass.

    Raises:
        FileNotFoundError: the folder or the data set is not there.
        ValueError: `held_out` is another split, no chorale is as long as a segment, or an argument
            is out of range.

    Reference: the splits are those of Boulanger-Lewandowski et al. 2012, "Modeling temporal
    dependencies in high-dimensional sequences".
    """
    if bars < 1:
        raise ValueError(f"bars={bars} must be at least 1")
    if held_out not in ("test", "validation"):
        raise ValueError(f"held_out={held_out!r} must be 'test' or 'validation'")
    builder = open_builder("jsb_chorales", data_dir)

    def split(which: str, hop: int) -> Examples:
        songs = read_split(builder, which)
        parts = [segments(to_tokens(song["pitches"]), bars * BAR, hop) for song in songs]
        return {"pitches": np.concatenate(parts)}

    return arrays(split("train", hop), split(held_out, BAR), name="jsb_chorales")


def segments(music: np.ndarray, frames: int, hop: int) -> np.ndarray:
    """Cut music into segments that start every so many frames; what is left at the end is dropped.

    Args:
        music: (t, voices).
        frames: of a segment.
        hop: frames from one start to the next.

    Returns:
        (n, frames, voices), of which there are none if the music is shorter.

    Raises:
        ValueError: `frames` or `hop` is less than 1.

    Example:
        >>> segments(np.arange(7)[:, None], 4, 2)[..., 0].tolist()
        [[0, 1, 2, 3], [2, 3, 4, 5]]
    """
    for name, value in (("frames", frames), ("hop", hop)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    starts = np.arange(0, len(music) - frames + 1, hop)
    return music[starts[:, None] + np.arange(frames)]  # (t, voices) -> (n, frames, voices)


def to_tokens(pitches: Any) -> np.ndarray:
    """Return the tokens of MIDI pitches, of which -1 is silence.

    Raises:
        ValueError: a pitch is not in the vocabulary.

    Example:
        >>> to_tokens([-1, 36, 60, 81]).tolist()
        [0, 1, 25, 46]
    """
    pitches = np.asarray(pitches, np.int32)
    if bad := sorted({int(p) for p in pitches.ravel() if p != -1 and not LOWEST <= p <= HIGHEST}):
        raise ValueError(f"pitches {bad} must be -1, or from {LOWEST} to {HIGHEST}")
    return np.where(pitches < 0, 0, pitches - (LOWEST - 1)).astype(np.int32)


def to_pitches(tokens: Any) -> np.ndarray:
    """Return the MIDI pitches of tokens, -1 for silence: the inverse of `to_tokens`.

    Example:
        >>> to_pitches([0, 1, 25, 46]).tolist()
        [-1, 36, 60, 81]
    """
    tokens = np.asarray(tokens, np.int32)
    return np.where(tokens == 0, -1, tokens + (LOWEST - 1)).astype(np.int32)


def transpose(examples: Examples, address: Address | Addressed) -> Examples:
    """Transpose each segment by -5 to +6 semitones, by its address alone.

    Every interval that keeps all of its notes within the vocabulary is as likely as any other; to
    be moved only as far as the vocabulary goes would crowd the segments at its ends.

    Example:
        >>> chord = np.full((1, 32, 4), 25)
        >>> moved = transpose({"pitches": chord}, Address(0, np.zeros(1, np.int64)))["pitches"]
        >>> bool((moved == moved[0, 0, 0]).all() and 20 <= moved[0, 0, 0] <= 31)
        True
    """
    pitches = examples["pitches"]
    xp = pitches.__array_namespace__()
    sounding = pitches > 0
    lowest = xp.where(sounding, pitches, VOCABULARY - 1).min((1, 2))
    highest = pitches.max((1, 2))
    down = xp.maximum(-5, 1 - lowest)  # 0 or less, as 0 is always among the choices
    up = xp.minimum(6, VOCABULARY - 1 - highest)
    choices = (up - down + 1).astype(np.uint32)
    shift = down + (address.bits("transpose") % choices).astype(np.int32)
    moved = xp.where(sounding, pitches + shift[:, None, None], 0)
    return examples | {"pitches": moved.astype(np.int32)}

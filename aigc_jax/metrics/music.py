"""Music to look at and to listen to: piano rolls, MIDI files, and sound.

Music is (t, voices) MIDI pitches, -1 for silence, a row a sixteenth. It does not say whether a note
that sounds over two rows is held or struck again. Here it is held, everywhere: what a voice sounds
without a change is one note.
"""

import io
import wave
from typing import Any, NamedTuple

import numpy as np

# Soprano, alto, tenor, bass: told apart by the colour-blind too (Wong 2011, "Color blindness").
COLOURS = np.array([[213, 94, 0], [204, 121, 167], [0, 158, 115], [0, 114, 178]], np.uint8)
BLACK_KEYS = (1, 3, 6, 8, 10)  # of an octave from C
NAMES = ("soprano", "alto", "tenor", "bass")


class Note(NamedTuple):
    """A note that one voice sounds from one frame to another.

    Attributes:
        voice: 0 is the highest.
        pitch: of MIDI; 60 is the middle C, and 69 is 440 Hz.
        start: its first frame.
        stop: the first frame after it.
    """

    voice: int
    pitch: int
    start: int
    stop: int


def notes(music: Any) -> list[Note]:
    """Read the notes off music, voice by voice.

    Args:
        music: (t, voices) MIDI pitches, -1 for silence.

    Raises:
        ValueError: it is not (t, voices) of integers from -1 to 127.

    Example:
        >>> notes([[60, 48], [60, -1], [62, 50]])[:2]
        [Note(voice=0, pitch=60, start=0, stop=2), Note(voice=0, pitch=62, start=2, stop=3)]
    """
    music = np.asarray(music)
    if music.ndim != 2 or music.dtype.kind not in "iu":
        raise ValueError(
            f"music is {music.shape} {music.dtype}; it must be (t, voices) of integers"
        )
    if music.size and (music.min() < -1 or music.max() > 127):
        raise ValueError(f"pitches go from {music.min()} to {music.max()}; they lie in [-1, 127]")
    found = []
    for voice, line in enumerate(music.T):
        changes = np.flatnonzero(np.diff(line)) + 1
        for start, stop in zip([0, *changes], [*changes, len(line)], strict=True):
            if start < stop and line[start] >= 0:
                found.append(Note(voice, int(line[start]), int(start), int(stop)))
    return found


def piano_roll(
    music: Any, *, low: int = 36, high: int = 81, width: int = 8, height: int = 4, bar: int = 16
) -> np.ndarray:
    """Picture music: time to the right, pitch upwards, a colour for each voice.

    The rows of black keys are grey, and so is the line before each quarter; that before each bar is
    darker. Where two voices meet, the higher one covers the other. A note ends a pixel early.

    Args:
        music: (t, voices) MIDI pitches, -1 for silence.
        low: the pitch of the lowest row.
        high: the pitch of the highest row; what is beyond either is not seen.
        width: pixels of a frame.
        height: pixels of a pitch.
        bar: frames of a bar, of four quarters.

    Returns:
        (height · (high − low + 1), width · t, 3) uint8.

    Raises:
        ValueError: the music is not such, it has more than four voices, or an option is out of
            range.

    Example:
        >>> roll = piano_roll([[60], [60], [62], [-1]], low=59, high=62, width=2, height=1)
        >>> roll.shape, roll[2, 0].tolist(), roll[0, 4].tolist()
        ((4, 8, 3), [213, 94, 0], [213, 94, 0])
    """
    music = np.asarray(music)
    for name, value, least in (
        ("width", width, 1),
        ("height", height, 1),
        ("bar", bar, 4),
        ("high", high, low),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    sounding = notes(music)
    if music.shape[1] > len(COLOURS):
        raise ValueError(f"music has {music.shape[1]} voices; there are {len(COLOURS)} colours")
    keys = np.isin(np.arange(high, low - 1, -1) % 12, BLACK_KEYS)
    levels = np.where(keys, 238, 255).astype(np.uint8).repeat(height)
    # (rows*height,) -> (rows*height, t*width, 3)
    roll = np.tile(levels[:, None, None], (1, len(music) * width, 3))
    times = np.arange(len(music))
    roll[:, times[times % (bar // 4) == 0] * width] = 216
    roll[:, times[times % bar == 0] * width] = 120
    for note in reversed(sounding):  # from the bass up
        if low <= note.pitch <= high:
            top = (high - note.pitch) * height
            end = max(note.stop * width - 1, note.start * width + 1)
            roll[top : top + height, note.start * width : end] = COLOURS[note.voice]
    return roll


def midi_file(music: Any, *, tempo: float = 80.0, program: int = 19) -> bytes:
    """Write music as a standard MIDI file: a track, and a channel, for each voice.

    Args:
        music: (t, voices) MIDI pitches, -1 for silence.
        tempo: quarters a minute.
        program: the instrument, as General MIDI counts from 0; 19 is a church organ.

    Returns:
        The bytes of the file, of type 1, 480 ticks a quarter.

    Raises:
        ValueError: the music is not such, or has more than four voices; or `tempo` is not above 0.

    Example:
        >>> midi_file([[60, 48], [62, 48]])[:4]
        b'MThd'
    """
    import mido

    music, sounding = np.asarray(music), notes(music)
    if music.shape[1] > len(NAMES):
        raise ValueError(f"music has {music.shape[1]} voices; there are names for {len(NAMES)}")
    if tempo <= 0:
        raise ValueError(f"tempo={tempo} must be above 0")
    file = mido.MidiFile(type=1, ticks_per_beat=480)
    frame = file.ticks_per_beat // 4
    head = file.add_track("chorale")
    head.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo)))
    head.append(mido.MetaMessage("time_signature", numerator=4, denominator=4))
    for voice in range(music.shape[1]):
        track, now = file.add_track(NAMES[voice]), 0
        track.append(mido.Message("program_change", channel=voice, program=program))
        for note in sounding:
            if note.voice == voice:
                for kind, at in (("note_on", note.start), ("note_off", note.stop)):
                    message = mido.Message(kind, channel=voice, note=note.pitch, velocity=80)
                    track.append(message.copy(time=(at - now) * frame))
                    now = at
        track.append(mido.MetaMessage("end_of_track", time=(len(music) - now) * frame))
    stored = io.BytesIO()
    file.save(file=stored)
    return stored.getvalue()


def wav_file(music: Any, *, tempo: float = 80.0, rate: int = 22_050) -> bytes:
    """Render music as sound, by additive synthesis.

    A note of frequency f = 440 · 2^((pitch − 69)/12) Hz is Σ_k sin(2π k f t) / k², of up to eight
    harmonics below half the sampling rate, under an envelope of straight lines: attack 15 ms, decay
    100 ms to 0.7, that sustained while the note is, release 80 ms. It rises from 0 and falls to 0,
    so that nothing clicks. The loudest moment is 0.9 of full scale.

    Args:
        music: (t, voices) MIDI pitches, -1 for silence.
        tempo: quarters a minute.
        rate: samples a second.

    Returns:
        The bytes of a WAV file: mono, of 16 bits.

    Raises:
        ValueError: the music is not such, or an option is not above 0.

    Example:
        >>> sound = wav_file([[69]] * 4, tempo=60.0, rate=8000)  # one second
        >>> sound[:4], len(sound) - 44 == 2 * (8000 + 640)
        (b'RIFF', True)
    """
    for name, value in (("tempo", tempo), ("rate", rate)):
        if value <= 0:
            raise ValueError(f"{name}={value} must be above 0")
    attack, decay, sustain, release = 0.015, 0.1, 0.7, 0.08
    frame = 60 / tempo / 4  # seconds
    tail = round(release * rate)
    sound = np.zeros(round(len(np.asarray(music)) * frame * rate) + tail)
    for note in notes(music):
        start, stop = (round(at * frame * rate) for at in (note.start, note.stop))
        held = stop - start
        t = np.arange(held + tail) / rate
        frequency = 440 * 2 ** ((note.pitch - 69) / 12)
        k = np.arange(1, 9)
        k = k[k * frequency < rate / 2]
        wave_form = (np.sin(2 * np.pi * frequency * t[:, None] * k) / k**2).sum(1)
        level = np.interp(t, [0, attack, attack + decay], [0, 1, sustain])
        fall = np.interp(np.arange(held + tail), [held, held + tail], [1, 0])
        sound[start : start + held + tail] += wave_form * level * fall
    sound *= 0.9 / max(np.abs(sound).max(initial=0), 1e-9)
    stored = io.BytesIO()
    with wave.open(stored, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(sound * 32767).astype("<i2").tobytes())
    return stored.getvalue()

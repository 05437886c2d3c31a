import io
import wave

import mido
import numpy as np
import pytest

from aigc_jax.metrics.music import COLOURS, Note, midi_file, notes, piano_roll, wav_file

# A voice that moves, falls silent and comes back; one silent, one held, one that jumps.
MUSIC = np.array([[72, -1, 55, 48], [72, -1, 55, 60], [-1, -1, 55, 48], [74, -1, 55, 48]])


def test_notes_are_held_until_they_change():
    assert notes(MUSIC) == [
        Note(0, 72, 0, 2),
        Note(0, 74, 3, 4),
        Note(2, 55, 0, 4),
        Note(3, 48, 0, 1),
        Note(3, 60, 1, 2),
        Note(3, 48, 2, 4),
    ]
    assert notes(np.zeros((0, 4), int)) == []


@pytest.mark.parametrize(
    ("music", "message"),
    [
        (np.zeros(4, int), r"music is \(4,\) int64; it must be \(t, voices\) of integers"),
        (np.zeros((4, 4)), "it must be"),
        ([[-2, 60]], r"pitches go from -2 to 60; they lie in \[-1, 127\]"),
        ([[128]], "pitches go from 128 to 128"),
    ],
)
def test_what_is_no_music_is_refused(music, message):
    for make in (notes, piano_roll, midi_file, wav_file):
        with pytest.raises(ValueError, match=message):
            make(music)


def test_a_roll_shows_each_note_in_its_voices_colour():
    roll = piano_roll(MUSIC, low=48, high=74, width=4, height=2, bar=8)
    assert roll.shape == (2 * 27, 16, 3) and roll.dtype == np.uint8
    shown = np.full((2 * 27, 16), -1)
    for voice, colour in enumerate(COLOURS):
        shown[(roll == colour).all(-1)] = voice
    expected = np.full((2 * 27, 16), -1)
    for voice, pitch, start, stop in notes(MUSIC):
        row = 2 * (74 - pitch)
        expected[row : row + 2, 4 * start : 4 * stop - 1] = voice
    np.testing.assert_array_equal(shown, expected)
    # Rows from the top are D5, C♯5: white and black. Quarters are two frames, bars four quarters.
    np.testing.assert_array_equal(roll[0, 1:3], 255)
    np.testing.assert_array_equal(roll[2, 1:3], 238)
    np.testing.assert_array_equal(roll[0, [0, 8], 0], [120, 216])


def test_where_voices_meet_the_higher_is_seen_and_what_is_beyond_is_not():
    roll = piano_roll([[60, 60, 61, 50]], low=60, high=60, width=3, height=1)
    np.testing.assert_array_equal(roll[0, :2], COLOURS[[0, 0]])
    assert len(np.unique(roll[0, 2])) == 1  # the pixel by which it ends early


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "^width=0 must be at least 1$"),
        ({"low": 60, "high": 59}, "^high=59 must be at least 60$"),
        ({"bar": 2}, "^bar=2 must be at least 4$"),
    ],
)
def test_a_roll_of_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        piano_roll(MUSIC, **options)


def test_a_midi_file_holds_the_notes_and_the_tempo():
    file = mido.MidiFile(file=io.BytesIO(midi_file(MUSIC, tempo=90.0, program=6)))
    assert (file.type, file.ticks_per_beat, len(file.tracks)) == (1, 480, 5)
    head = {message.type: message for message in file.tracks[0]}
    assert head["set_tempo"].tempo == round(60e6 / 90)
    found = []
    for voice, track in enumerate(file.tracks[1:]):
        now, sounding = 0, {}
        for message in track:
            now += message.time
            if message.type == "program_change":
                assert (message.channel, message.program) == (voice, 6)
            elif message.type == "note_on":
                sounding[message.note] = now // 120
            elif message.type == "note_off":
                start = sounding.pop(message.note)
                found.append(Note(message.channel, message.note, start, now // 120))
        assert not sounding and now == 4 * 120  # all end together, silent or not
    assert found == notes(MUSIC)
    np.testing.assert_allclose(file.length, 60 / 90, 1e-6)  # one quarter, in microseconds


def heard(music, **options):
    with wave.open(io.BytesIO(wav_file(music, **options))) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
        return sound, file.getframerate()


@pytest.mark.parametrize("pitch", [45, 60, 69, 81])
def test_the_spectrum_peaks_at_the_notes_frequency_and_has_its_harmonics(pitch):
    sound, rate = heard(np.full((16, 1), pitch), tempo=60.0)
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    held = sound[rate // 2 : rate // 2 + 2 * rate] * np.hanning(2 * rate)  # in bins of ½ Hz
    spectrum = np.abs(np.fft.rfft(held))
    assert abs(spectrum.argmax() / 2 - frequency) <= 0.5
    height = lambda k: spectrum[round(2 * k * frequency) - 3 : round(2 * k * frequency) + 4].max()
    np.testing.assert_allclose([height(2) / height(1), height(3) / height(1)], [1 / 4, 1 / 9], 0.2)
    assert height(1.5) < 1e-3 * height(1)


def test_sound_is_of_its_length_as_loud_as_it_may_be_and_does_not_click():
    sound, rate = heard(MUSIC, tempo=120.0, rate=16_000)
    assert rate == 16_000 and len(sound) == round((0.5 + 0.08) * rate)
    assert 0.899 < np.abs(sound).max() < 0.901
    assert sound[0] == 0 and abs(sound[-1]) < 1e-3
    # A click would be a step. Smooth tones of up to 587 Hz at k-th harmonics of 1/k² step by no
    # more than Σ 2πf/rate·1/k a voice, relative to amplitudes of Σ 1/k².
    tone, _ = heard(np.full((4, 1), 74), tempo=120.0, rate=16_000)
    assert np.abs(np.diff(sound)).max() < 1.5 * np.abs(np.diff(tone)).max()


def test_silence_is_silent_and_voices_sound_together():
    sound, _ = heard(np.full((4, 2), -1))
    assert not sound.any()
    both, rate = heard(np.tile([57, 64], (16, 1)), tempo=60.0)
    spectrum = np.abs(np.fft.rfft(both[rate : 2 * rate] * np.hanning(rate)))  # in bins of 1 Hz
    low, fifth, between = spectrum[220], spectrum[329:331].max(), spectrum[270:280].max()
    assert 0.5 < low / fifth < 2 and between < 0.01 * low


@pytest.mark.parametrize("options", [{"tempo": 0.0}, {"rate": 0}])
def test_sound_of_no_tempo_or_rate_is_refused(options):
    with pytest.raises(ValueError, match="must be above 0"):
        wav_file(MUSIC, **options)
    if "tempo" in options:
        with pytest.raises(ValueError, match="must be above 0"):
            midi_file(MUSIC, **options)


def test_there_are_four_voices_at_most():
    for make in (piano_roll, midi_file):
        with pytest.raises(ValueError, match="music has 5 voices; there are"):
            make(np.full((4, 5), 60))

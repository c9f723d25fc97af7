"""Speech Commands: recordings of spoken words, as waveforms."""

import wave
from os import PathLike
from pathlib import Path

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record
from rnnscale.tasks._baselines import most_frequent
from rnnscale.tasks._folder import FileRecords, file_of_folder, files_of_folder
from rnnscale.tasks._task import Task

_ARCHIVE = "speech_commands_v0.02.tar.gz, of download.tensorflow.org/data, unpacked"
_RATE = 16_000

SPEECH_COMMANDS = (
    *("backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward"),
    *("four", "go", "happy", "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one"),
    *("right", "seven", "sheila", "six", "stop", "three", "tree", "two", "up", "visual", "wow"),
    *("yes", "zero"),
)


def speech_commands(folder: str | PathLike[str]) -> Task:
    """Which of 35 words is spoken, from the waveform: one second at 16 kHz.

    The split is the published one: the recordings in `validation_list.txt`, those in
    `testing_list.txt`, and the rest for training; 84843, 9981 and 11005 recordings. No speaker is
    in two splits. Inputs are float32 of shape `(16000, 1)` in `[-1, 1)`, padded with zeros from
    step `"lengths"` on. The label is the word's index in `SPEECH_COMMANDS`. Each access reads a
    recording from its file.

    **Arguments:**

    - `folder`: contains a folder for each word with its `*.wav` files, and the two lists.

    **Returns:**

    The task. Its `baseline` is the accuracy of the most frequent word in the test split.

    **Raises:** `ValueError` if a folder or file is missing; and at an index, if the recording can't
    be read, is empty or longer than a second, or is not at 16 kHz with one channel of 16 bits.

    **Reference:** Warden, "Speech commands: A dataset for limited-vocabulary speech recognition",
    2018, version 2.
    """
    splits: dict[str, list[tuple[Path, int]]] = {"train": [], "validation": [], "test": []}
    listed = {
        name: split
        for split, list_name in {"validation": "validation_list", "test": "testing_list"}.items()
        for name in file_of_folder(folder, f"{list_name}.txt", _ARCHIVE).read_text().split()
    }
    for label, word in enumerate(SPEECH_COMMANDS):
        for path in files_of_folder(folder, word, ".wav", _ARCHIVE):
            split = listed.pop(f"{word}/{path.name}", "train")
            splits[split].append((path, label))
    if listed:
        missing = next(iter(listed))
        raise UserError(
            f"{len(listed)} recordings of the lists are missing, such as {missing!r}; put into "
            f"{str(folder)!r} {_ARCHIVE}"
        )
    return Task(
        "speech-commands",
        *(FileRecords(recordings, _read_recording) for recordings in splits.values()),
        inputs="features",
        idim=1,
        classes=len(SPEECH_COMMANDS),
        labels="sequence",
        seq_len=_RATE,
        metric="accuracy",
        notes={"folder": str(folder)},
        baseline=lambda: most_frequent(np.array([label for _, label in splits["test"]])),
    )


def _read_recording(recording: tuple[Path, int], index: int) -> Record:
    path, label = recording
    try:
        with wave.open(str(path)) as file:
            header = file.getparams()
            content = file.readframes(header.nframes)
    except (OSError, EOFError, wave.Error) as error:
        raise UserError(f"{path}, record {index}: can't be read as a wave: {error}") from error
    form = (header.framerate, header.nchannels, header.sampwidth)
    if form != (_RATE, 1, 2) or not 0 < header.nframes <= _RATE:
        raise UserError(
            f"{path}, record {index}: must have 1 to {_RATE} samples at {_RATE} Hz, with one "
            f"channel of 2 bytes; it has {header.nframes} samples at {form[0]} Hz, {form[1]} "
            f"channels, {form[2]} bytes"
        )
    if len(content) != 2 * header.nframes:
        raise UserError(f"{path}, record {index}: the file is truncated")
    samples = np.frombuffer(content, "<i2") / np.float32(2**15)
    return {
        "inputs": np.pad(samples, (0, _RATE - len(samples)))[:, None],
        "labels": np.asarray(label, np.int32),
        "lengths": np.asarray(len(samples), np.int32),
    }

"""Spoken words, as waves."""

import wave
from os import PathLike
from pathlib import Path

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources import Record
from rnnscale.tasks._folder import file_of_folder, files_of_folder
from rnnscale.tasks._most_frequent import most_frequent
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
    """Which of 35 words is spoken, by the wave: one second at 16 kHz.

    The split is the published one: what `validation_list.txt` and `testing_list.txt` name, and the
    rest for training; 84843, 9981 and 11005 recordings, no speaker in two of them. Inputs are
    float32 of shape `(16000, 1)` in `[-1, 1)`, filled up with zeros; `"lengths"` is where that
    begins. The label is the word's place in `SPEECH_COMMANDS`. Recordings are read when they are
    asked for.

    **Arguments:**

    - `folder`: holds a folder for each word with its `*.wav`, and the two lists.

    **Returns:**

    The task. Its `baseline` is the accuracy of the word that is most frequent in the test split.

    **Raises:** `ValueError` for a folder or file that is missing, and when it is read, for a
    recording that is none of at most one second at 16 kHz, of one channel of 16 bits.

    **Reference:** Warden, "Speech commands: A dataset for limited-vocabulary speech recognition",
    2018, version 2.
    """
    parts: dict[str, list[tuple[Path, int]]] = {"train": [], "validation": [], "test": []}
    listed = {
        name: part
        for part, list_name in {"validation": "validation_list", "test": "testing_list"}.items()
        for name in file_of_folder(folder, f"{list_name}.txt", _ARCHIVE).read_text().split()
    }
    for label, word in enumerate(SPEECH_COMMANDS):
        for path in files_of_folder(folder, word, ".wav", _ARCHIVE):
            part = listed.pop(f"{word}/{path.name}", "train")
            parts[part].append((path, label))
    if listed:
        missing = next(iter(listed))
        raise UserError(
            f"{len(listed)} recordings of the lists are missing, such as {missing!r}; put into "
            f"{str(folder)!r} {_ARCHIVE}"
        )
    return Task(
        name="speech-commands",
        description=f"35 spoken words as waves at 16 kHz: {_RATE} steps, 35 classes",
        train=_Recordings(parts["train"]),
        validation=_Recordings(parts["validation"]),
        test=_Recordings(parts["test"]),
        inputs="features",
        idim=1,
        classes=len(SPEECH_COMMANDS),
        labels="sequence",
        seq_len=_RATE,
        metric="accuracy",
        notes={"folder": str(folder)},
        baseline=lambda: most_frequent(np.array([label for _, label in parts["test"]])),
    )


class _Recordings:
    """Recordings of a second or less, each in a file with its class."""

    def __init__(self, files: list[tuple[Path, int]]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"recording {index} of {len(self)}")
        path, label = self._files[index]
        try:
            with wave.open(str(path)) as recording:
                about = recording.getparams()
                content = recording.readframes(about.nframes)
        except (OSError, EOFError, wave.Error) as error:
            raise UserError(f"{path}, record {index}: can't be read as a wave: {error}") from error
        told = (about.framerate, about.nchannels, about.sampwidth)
        if told != (_RATE, 1, 2) or not 0 < about.nframes <= _RATE:
            raise UserError(
                f"{path}, record {index}: must have at most {_RATE} samples at {_RATE} Hz, of one "
                f"channel of 2 bytes; it has {about.nframes} samples at {told[0]} Hz, {told[1]} "
                f"channels, {told[2]} bytes"
            )
        if len(content) != 2 * about.nframes:
            raise UserError(f"{path}, record {index}: the file is truncated")
        samples = np.frombuffer(content, "<i2") / np.float32(2**15)
        return {
            "inputs": np.pad(samples, (0, _RATE - len(samples)))[:, None],
            "labels": np.asarray(label, np.int32),
            "lengths": np.asarray(len(samples), np.int32),
        }

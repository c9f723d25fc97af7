"""Tasks that read a folder, with small made-up data sets in the published layout."""

import pickle
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rnnscale import data, tasks

SPLITS = ("train", "validation", "test")


def labels(source: data.Source) -> list[int]:
    return [int(record["labels"]) for record in source]


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# A small data set in the layout of each task.


def write_listops(folder: Path) -> None:
    lines = {
        "train": [b"( ( ( [MAX 4 ) 3 ) ] )\t4", b"7\t7", b"( ( ( [SM 9 ) 8 ) ] )\t7"],
        "val": [b"( ( ( [MIN 4 ) 3 ) ] )\t3"],
        "test": [b"( ( ( ( [MED 1 ) 5 ) 8 ) ] )\t5", b"0\t0"],
    }
    for split, each in lines.items():
        content = b"\r\n".join([b"Source\tTarget", *each, b""])
        write(folder / f"listops-1000/basic_{split}.tsv", content)


def write_text(folder: Path) -> None:
    for split in ("train", "test"):
        for kind in ("pos", "neg"):
            for number in range(20):
                text = f"{split} {kind} {number} " * (1 + 100 * number)
                write(folder / f"aclImdb/{split}/{kind}/{number:02}_7.txt", text.encode())


def write_retrieval(folder: Path) -> None:
    for split, number in {"train": 3, "eval": 1, "test": 2}.items():
        lines = [f"{i % 2}.0\ta{i}\tb{i}\tone {split}\t{'two' * 1000 * i}" for i in range(number)]
        content = "\n".join(lines).encode()  # no end of the last line
        write(folder / f"tsv_data/new_aan_pairs.{split}.tsv", content)


def cifar(seed: int, count: int) -> np.ndarray:
    content = np.random.RandomState(seed).randint(256, size=(count, 3073)).astype(np.uint8)
    content[:, 0] %= 10
    return content


def write_image(folder: Path) -> None:
    for number in range(1, 6):
        path = folder / f"cifar-10-batches-bin/data_batch_{number}.bin"
        write(path, cifar(number, number).tobytes())
    write(folder / "cifar-10-batches-bin/test_batch.bin", cifar(6, 3).tobytes())


def picture(number: int, side: int) -> np.ndarray:
    return np.random.RandomState(number).randint(256, size=(side, side)).astype(np.uint8)


def write_pathfinder(folder: Path, side: int) -> None:
    image = pytest.importorskip("PIL.Image")
    place = folder / f"pathfinder{side}/curv_contour_length_14"
    for part in range(2):
        lines = []
        for number in range(part * 10, part * 10 + 10):
            path = place / f"imgs/{part}/sample_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(picture(number, side)).save(path)
            lines.append(f"imgs/{part} sample_{number}.png {number} {number % 2} 0.5 1 2\n")
        write(place / f"metadata/{part}.npy", "".join(lines).encode())


def write_wave(path: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def sound(label: int, number: int) -> np.ndarray:
    random = np.random.RandomState(100 * label + number)
    return random.randint(-(2**15), 2**15, size=16_000 - 1000 * number)


def write_speech(folder: Path) -> None:
    for label, word in enumerate(tasks.SPEECH_COMMANDS):
        for number in range(3):
            write_wave(folder / word / f"{number}_nohash_0.wav", sound(label, number))
    write_wave(folder / "_background_noise_/noise.wav", sound(0, 0))
    for name, number in {"validation": 1, "testing": 2}.items():
        listed = "".join(f"{word}/{number}_nohash_0.wav\n" for word in tasks.SPEECH_COMMANDS)
        write(folder / f"{name}_list.txt", listed.encode())


WRITERS: dict[str, Callable[[Path], None]] = {
    "lra-listops": write_listops,
    "lra-text": write_text,
    "lra-retrieval": write_retrieval,
    "lra-image": write_image,
    "lra-pathfinder": lambda folder: write_pathfinder(folder, 32),
    "lra-pathx": lambda folder: write_pathfinder(folder, 128),
    "speech-commands": write_speech,
}


@pytest.fixture
def load(tmp_path) -> Callable[[str], tasks.Task]:
    def loaded(name: str) -> tasks.Task:
        WRITERS[name](tmp_path)
        return tasks.load_task(name, folder=tmp_path)

    return loaded


@pytest.mark.parametrize(
    "name, sizes, steps, classes",
    [
        ("lra-listops", (3, 1, 2), 2000, 10),
        ("lra-text", (36, 4, 40), 4096, 2),
        ("lra-retrieval", (3, 1, 2), 8001, 2),
        ("lra-image", (14, 1, 3), 1024, 10),
        ("lra-pathfinder", (16, 2, 2), 1024, 2),
        ("lra-pathx", (16, 2, 2), 16384, 2),
        ("speech-commands", (35, 35, 35), 16000, 35),
    ],
)
def test_records_are_as_the_task_says_and_in_one_split(load, name, sizes, steps, classes):
    task = load(name)
    assert tuple(len(getattr(task, split)) for split in SPLITS) == sizes
    assert (task.name, task.seq_len, task.classes) == (name, steps, classes)
    seen = []
    for split in SPLITS:
        source = getattr(task, split)
        copied = pickle.loads(pickle.dumps(source))  # as workers get it
        for index, record in enumerate(source):
            tokens = task.inputs == "tokens"
            assert record["inputs"].shape == ((steps,) if tokens else (steps, task.idim))
            assert record["inputs"].dtype == (np.int32 if tokens else np.float32)
            assert record["labels"].dtype == np.int32 and 0 <= record["labels"] < classes
            if "lengths" in record:
                assert 0 < record["lengths"] <= steps and record["lengths"].dtype == np.int32
                assert not record["inputs"][record["lengths"] :].any()
            np.testing.assert_array_equal(copied[index]["inputs"], record["inputs"])
            seen.append(record["inputs"].tobytes())
        with pytest.raises(IndexError):
            source[len(source)]
    assert len(set(seen)) == len(seen)
    counts = np.bincount(labels(task.test))
    assert task.baseline() == {"most_frequent_accuracy": counts.max() / counts.sum()}


def test_listops_of_the_arena_are_its_lines_without_brackets(load):
    task = load("lra-listops")
    found = [
        " ".join(tasks.LISTOPS_TOKENS[t] for t in r["inputs"][: r["lengths"]])
        for split in SPLITS
        for r in getattr(task, split)
    ]
    assert found == ["[MAX 4 3 ]", "7", "[SM 9 8 ]", "[MIN 4 3 ]", "[MED 1 5 8 ]", "0"]
    assert labels(task.train) == [4, 7, 7] and labels(task.test) == [5, 0]


def test_reviews_are_cut_to_4096_bytes(load, tmp_path):
    task = load("lra-text")
    parts = {}
    for split in SPLITS:
        sequences, padded = task.sequences[split], getattr(task, split)
        assert sequences.lengths.tolist() == [len(r["inputs"]) for r in sequences]
        assert sequences.lengths.tolist() == [r["lengths"] for r in padded]
        texts = [r["inputs"].astype(np.uint8).tobytes() for r in sequences]
        parts[split] = dict(zip(texts, labels(padded), strict=True))
        part = sequences.read(0, 3, 7)
        np.testing.assert_array_equal(part["inputs"], sequences[0]["inputs"][3:7])
    for split in ("train", "test"):
        for kind, label in {"neg": 0, "pos": 1}.items():
            for number in range(20):
                path = tmp_path / f"aclImdb/{split}/{kind}/{number:02}_7.txt"
                part = "validation" if split == "train" and number in (9, 19) else split
                assert parts[part][path.read_bytes()[:4096]] == label


def test_pairs_of_papers_are_cut_and_joined(load):
    task = load("lra-retrieval")
    assert labels(task.train) == [0, 1, 0]
    for index, record in enumerate(task.train):
        text = record["inputs"][: record["lengths"]].astype(np.uint8).tobytes()
        assert text == b"one train\0" + (b"two" * 1000 * index)[:4000]


def test_images_of_cifar_are_grey_and_in_the_order_of_the_files(load):
    task = load("lra-image")
    written = np.concatenate([cifar(number, number) for number in range(1, 6)])
    found = [*task.train, *task.validation]
    for content, record in zip(written, found, strict=True):
        assert record["labels"] == content[0]
        red, green, blue = content[1:].reshape(3, 1024).astype(np.float64)
        grey = (0.299 * red + 0.587 * green + 0.114 * blue) / 255
        np.testing.assert_allclose(record["inputs"][:, 0], grey, rtol=1e-6)
    assert labels(task.test) == cifar(6, 3)[:, 0].tolist()


def test_pictures_of_pathfinder_have_the_labels_of_the_lists(load):
    task = load("lra-pathfinder")
    label_of = {picture(number, 32).tobytes(): number % 2 for number in range(20)}
    for split in SPLITS:
        for record in getattr(task, split):
            pixels = np.rint(record["inputs"] * 255).astype(np.uint8).tobytes()
            assert label_of.pop(pixels) == record["labels"]
    assert not label_of


def test_recordings_are_split_by_the_lists(load):
    task = load("speech-commands")
    for number, split in enumerate(SPLITS):
        source = getattr(task, split)
        assert labels(source) == list(range(35))
        for label, record in enumerate(source):
            samples = sound(label, number)
            assert record["lengths"] == len(samples)
            np.testing.assert_array_equal(record["inputs"][: len(samples), 0] * 2**15, samples)


# Missing and malformed files.

NEEDED = {
    "lra-listops": ("listops-1000/basic_val.tsv", "lra_release.gz"),
    "lra-text": ("aclImdb/test/pos", "aclImdb_v1.tar.gz"),
    "lra-retrieval": ("tsv_data/new_aan_pairs.eval.tsv", "lra_release.gz"),
    "lra-image": ("cifar-10-batches-bin/data_batch_3.bin", "cifar-10-binary.tar.gz"),
    "lra-pathfinder": ("pathfinder32/curv_contour_length_14/metadata", "lra_release.gz"),
    "lra-pathx": ("pathfinder128/curv_contour_length_14/metadata", "lra_release.gz"),
    "speech-commands": ("zero", "speech_commands_v0.02.tar.gz"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_errors_name_a_missing_file_and_its_origin(load, tmp_path, name):
    with pytest.raises(ValueError, match=f"'{name}' reads its data from a folder"):
        tasks.load_task(name)
    with pytest.raises(ValueError, match="there is no .*; put into .* unpacked|has in lra_release"):
        tasks.load_task(name, folder=tmp_path / "nowhere")
    load(name)
    path, archive = NEEDED[name]
    (tmp_path / path).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"there is no .*{path}'; put into .*{archive}"):
        tasks.load_task(name, folder=tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / path)
    with pytest.raises(ValueError, match=r"steps; got seq_len=7"):
        tasks.load_task(name, folder=tmp_path, seq_len=7)


def test_listed_recordings_must_exist(load, tmp_path):
    load("speech-commands")
    with (tmp_path / "testing_list.txt").open("a") as listed:
        listed.write("yes/gone.wav\n")
    with pytest.raises(ValueError, match="1 recordings of the lists are missing.*'yes/gone.wav'"):
        tasks.load_task("speech-commands", folder=tmp_path)
    for path in (tmp_path / "yes").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"there is no file .*yes/\*.wav'"):
        tasks.load_task("speech-commands", folder=tmp_path)


@pytest.mark.parametrize(
    "line, message",
    [
        (b"[MAX 4 3 ]", "must be operations, a tab and a digit"),
        (b"[MAX 4 3 ]\t10", "a digit; it has b'10'"),
        (b"[FIRST 4 3 ]\t4", r"it has \[b'\[FIRST'\]"),
        (b"\t4", "must have 1 to 2000 tokens; it has 0"),
        (b"1 " * 2001 + b"\t4", "it has 2001"),
    ],
)
def test_malformed_lines_of_listops(load, tmp_path, line, message):
    load("lra-listops")
    path = tmp_path / "listops-1000/basic_test.tsv"
    path.write_bytes(b"Source\tTarget\n0\t0\n" + line + b"\n")
    task = tasks.load_task("lra-listops", folder=tmp_path)
    assert labels(task.train) == [4, 7, 7] and task.test[0]["labels"] == 0
    with pytest.raises(ValueError, match=f"basic_test.tsv, line 3: .*{message}"):
        task.test[1]


def test_malformed_lines_of_papers(load, tmp_path):
    load("lra-retrieval")
    lines = [b"2.0\ta\tb\tone\ttwo", b"1.0\ta\tb\tone", b""]
    (tmp_path / "tsv_data/new_aan_pairs.test.tsv").write_bytes(b"\n".join([*lines, b""]))
    task = tasks.load_task("lra-retrieval", folder=tmp_path)
    for index in range(len(lines)):
        with pytest.raises(ValueError, match=f"test.tsv, line {index + 1}: must be 0 or 1, two"):
            task.test[index]


@pytest.mark.parametrize("name", ["lra-listops", "lra-text", "lra-retrieval", "lra-image"])
def test_a_file_that_changes_is_noticed(load, tmp_path, name):
    task = load(name)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="record 0: the file had .* bytes"):
        task.train[0]


def test_files_without_records(load, tmp_path):
    load("lra-listops")
    (tmp_path / "listops-1000/basic_val.tsv").write_bytes(b"Source\tTarget\n")
    with pytest.raises(ValueError, match="basic_val.tsv has no records"):
        tasks.load_task("lra-listops", folder=tmp_path)
    load("lra-text")
    (tmp_path / "aclImdb/train/neg/00_7.txt").write_bytes(b"")
    with pytest.raises(ValueError, match="neg/00_7.txt is empty"):
        tasks.load_task("lra-text", folder=tmp_path)


def test_malformed_files_of_images(load, tmp_path):
    load("lra-image")
    path = tmp_path / "cifar-10-batches-bin/data_batch_1.bin"
    path.write_bytes(b"\x0a" * 3073)
    with pytest.raises(ValueError, match="data_batch_1.bin, record 0: class 10 must be"):
        tasks.load_task("lra-image", folder=tmp_path).train[0]
    path.write_bytes(b"\0" * 3074)
    with pytest.raises(
        ValueError, match="data_batch_1.bin must be .* multiple of 3073 bytes; it has 3074"
    ):
        tasks.load_task("lra-image", folder=tmp_path)


def test_malformed_pictures(load, tmp_path):
    image = pytest.importorskip("PIL.Image")
    task = load("lra-pathfinder")
    place = tmp_path / "pathfinder32/curv_contour_length_14"
    for path in place.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="sample_.*, record 0: can't be read as an image"):
        task.train[0]
    for path in place.rglob("*.png"):
        image.fromarray(picture(0, 31)).save(path)
    with pytest.raises(ValueError, match="sample_.*, record 0: must have 32 x 32 pixels.*31 x 31"):
        task.train[0]
    for path in place.rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="sample_.*, record 0: can't be read as an image"):
        task.train[0]
    (place / "metadata/1.npy").write_text("imgs/0 sample_0.png 0 1\nimgs/0 sample_1.png 1 2\n")
    with pytest.raises(ValueError, match="1.npy, line 2: must begin with .* 0 or 1"):
        tasks.load_task("lra-pathfinder", folder=tmp_path)


def test_pathfinder_without_pillow_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("rnnscale.tasks._lra_images.find_spec", lambda _: None)
    with pytest.raises(ImportError, match="Pillow.*pip install pillow"):
        tasks.load_task("lra-pathx", folder=tmp_path)


def test_recordings_of_another_kind(load, tmp_path):
    task = load("speech-commands")
    path = tmp_path / "backward/0_nohash_0.wav"
    for written, message in [
        ({"rate": 8_000}, "8000 Hz"),
        ({"channels": 2}, "2 channels"),
        ({"samples": np.zeros(16_001)}, "it has 16001 samples"),
        ({"samples": np.zeros(0)}, "it has 0 samples"),
    ]:
        write_wave(path, **{"samples": np.zeros(100), **written})
        with pytest.raises(ValueError, match=f"0_nohash_0.wav, record 0: must have .*{message}"):
            task.train[0]


def test_truncated_recordings(load, tmp_path):
    task = load("speech-commands")
    path = tmp_path / "backward/0_nohash_0.wav"
    content = path.read_bytes()
    for kept in (1000, 30, 20, 0):
        path.write_bytes(content[:kept])
        with pytest.raises(ValueError, match="0_nohash_0.wav, record 0: "):
            task.train[0]

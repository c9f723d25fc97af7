"""The task `bytes`: which files it reads, how it splits them, and its windows of bytes."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from rnnscale import data, tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty text files in two folders, and one file of each kind that must not be read."""
    (tmp_path / "sub").mkdir()
    for i in range(40):
        name = f"sub/{i}.txt" if i % 2 else f"{i}.md"
        (tmp_path / name).write_text(f"file {i} é\n" * (i + 2))
    (tmp_path / "picture.bin").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    return tmp_path


def text_of(source: data.Source) -> bytes:
    """The text of the windows; all of it if they have one step."""
    inputs = [source[index]["inputs"] for index in range(len(source))]
    return bytes(np.concatenate([*inputs, source[len(source) - 1]["labels"][-1:]]).tolist())


@given(text=st.binary(max_size=60), seq_len=st.integers(1, 20))
def test_windows_give_back_the_text(text, seq_len):
    array = np.frombuffer(text, np.uint8)
    source = tasks.Windows(array[:-1], array[1:], seq_len, stride=seq_len, dtype=np.int32)
    rows = [source[i] for i in range(len(source))]
    for outside in (-1, len(source)):
        with pytest.raises(IndexError):
            source[outside]
    assert len(rows) == len(source)
    assert len(source) * seq_len + 1 <= max(1, len(text)) < (len(source) + 1) * seq_len + 1
    for name, shift in (("inputs", 0), ("labels", 1)):
        joined = np.concatenate([np.zeros(0, np.int32), *(row[name] for row in rows)])
        assert joined.dtype == np.int32
        assert np.array_equal(joined, array[shift : shift + len(joined)])
        assert all(row[name].shape == (seq_len,) for row in rows)


def test_every_text_file_is_in_one_split(folder):
    task = tasks.load_task("bytes", seq_len=1, text=folder)
    files = [
        {bytes(f) for f in text_of(s).split(b"\0")}
        for s in (task.train, task.validation, task.test)
    ]
    assert [len(f) for f in files] == [36, 2, 2]
    wanted = {p.read_bytes() for p in folder.rglob("*.txt") if p.parent != folder}
    wanted |= {p.read_bytes() for p in folder.glob("*.md")}
    assert set.union(*files) == wanted and sum(map(len, files)) == len(wanted) == 40
    assert task.notes["corpus_files"] == 40
    assert task.notes["corpus_bytes"] == sum(map(len, wanted))


def test_names_that_are_not_unicode(tmp_path):
    for name in (b"a.txt", b"b.txt", b"caf\xe9.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("text " * 9)
    task = tasks.load_task("bytes", seq_len=4, text=tmp_path)
    assert task.notes["corpus_files"] == 3


def test_split_and_hash_are_fixed(folder):
    first = tasks.load_task("bytes", seq_len=1, text=folder)
    # The digest of a path decides, so these are the same on any machine.
    names = [f"sub/{i}.txt" if i % 2 else f"{i}.md" for i in range(40)]
    by_digest = sorted(names, key=lambda n: hashlib.blake2b(n.encode()).digest())
    assert by_digest[:4] == ["28.md", "8.md", "sub/15.txt", "30.md"]
    expected = b"\0".join((folder / n).read_bytes() for n in sorted(by_digest[:2]))
    assert text_of(first.test) == expected
    assert first.notes["corpus_sha256"] == (
        "d02be2707ca07ef40a4072fcfe5292592ed1d1b11428a57115e82adbc900dfd6"
    )

    (folder / "0.md").write_text("something else")
    second = tasks.load_task("bytes", seq_len=1, text=folder)
    assert second.notes["corpus_sha256"] != first.notes["corpus_sha256"]


def test_default_is_the_standard_library_without_its_tests():
    task = tasks.load_task("bytes")
    assert task.seq_len == 1024 and task.idim == task.classes == 256
    assert 5e6 < task.notes["corpus_bytes"] < 4e7
    text = b"\0".join(text_of(s) for s in (task.train, task.validation, task.test))
    assert Path(hashlib.__file__).read_bytes() in text
    assert b"import unittest\nfrom test import support" not in text
    for split in (task.validation, task.test):
        assert 0.02 < len(text_of(split)) / len(text) < 0.12


@pytest.mark.parametrize("seq_len", [0, -1])
def test_sequence_length(seq_len):
    with pytest.raises(ValueError, match=f"seq_len must be at least 1; got {seq_len}"):
        tasks.load_task("bytes", seq_len=seq_len)


def test_folders_without_enough_text(tmp_path, folder):
    empty = tmp_path / "none"
    empty.mkdir()
    (empty / "data.bin").write_bytes(b"\0\1")
    with pytest.raises(ValueError, match=f"no text file .*{empty}"):
        tasks.load_task("bytes", text=empty)
    with pytest.raises(ValueError, match="must be a file or a folder .*missing"):
        tasks.load_task("bytes", text=tmp_path / "missing")
    with pytest.raises(ValueError, match="validation split .* less than one window .*5001"):
        tasks.load_task("bytes", seq_len=5000, text=folder)

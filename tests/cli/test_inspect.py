"""`rnnscale inspect`: the report of a run, read back."""

import base64
import json
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rnnscale.cli import main

pytest.importorskip("matplotlib", reason="plots need matplotlib")

# The same in all tests, so that they share compiled programs.
STEPS = ("--steps", "12")

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """The text of a page by tags. Raises if a tag is not closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.pictures: list[tuple[str, bytes]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            found = {name: str(value) for name, value in attrs}
            kind, data = found["src"].split(",")
            assert kind == "data:image/png;base64"
            self.pictures.append((found["alt"], base64.b64decode(data, validate=True)))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def all(self, tag: str) -> list[str]:
        return [text for each, text in self.texts if each == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a folder whose name would break a page if it were not escaped."""
    out = tmp_path_factory.mktemp("runs") / 'a <b> & "c"'
    options = "--model elman --dim 6 --depth 1 --steps 4 --log-every 2 --batch-size 8"
    assert main(["train", "digits", *options.split(), "--out", str(out)]) == 0
    return out


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> Path:
    capsys.readouterr()
    assert main(["inspect", *arguments]) == 0
    return Path(capsys.readouterr().out.removeprefix("wrote ").strip())


def test_the_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = files(run)
    file = inspected(capsys, str(run), *STEPS, "--mesh", "tensor=2,fsdp=3")
    assert file == run / "inspect.html"
    after = files(run)
    del after[file]
    assert after == before
    text = file.read_text(encoding="utf-8")
    assert "http" not in text
    page = Page(text)
    assert page.all("h1") == ["digits, elman"]
    assert page.all("p")[0] == "step 4; the training has ended"
    assert [name for name, _ in page.pictures] == [
        "Curves",
        "Eigenvalues",
        "Time scales",
        "Gradients against lag",
        "Lyapunov exponents",
    ]
    assert all(data.startswith(PNG) for _, data in page.pictures)
    assert any("8 test sequences of 12 steps" in each for each in page.all("p"))
    assert "In parallel over time: layer 0, 4 sequences of 12 steps" in page.all("h2")
    cells = page.all("td")
    # Its six states are few enough for the dense Jacobian.
    assert [each for each in cells if each in ("loop over time", "dense", "block", "diagonal")] == [
        "loop over time",
        "dense",
        "diagonal",
    ]
    # The text of the folder's name, quotes and all.
    assert cells[cells.index("out") + 1] == str(run)
    summary = json.loads((run / "summary.json").read_text())
    assert float(cells[cells.index("test_loss") + 1]) == pytest.approx(
        summary["test_loss"], rel=1e-4
    )
    # The readout of 6 * 10 float32, its 6 inputs over fsdp.
    assert "Parameters on data=1, fsdp=3, tensor=2, seq=1" in page.all("h2")
    at = cells.index("readout.weight")
    assert cells[at + 1] == "10 × 6" and cells[at + 4] == "80"
    again = inspected(
        capsys, str(run), *STEPS, "--mesh", "tensor=2,fsdp=3", "--out", str(tmp_path / "again.html")
    )
    assert again.read_text(encoding="utf-8") == text


def test_the_picture_of_an_unfinished_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    going = shutil.copytree(run, tmp_path / "going")
    config = json.loads((going / "config.json").read_text())
    (going / "config.json").write_text(json.dumps({**config, "steps": 100}))
    (going / "summary.json").unlink()
    page = Page(inspected(capsys, str(going), *STEPS).read_text(encoding="utf-8"))
    assert page.all("p")[0] == "step 4 of 100; the training goes on, or was stopped"
    assert "test_loss" not in page.all("td")
    picture = tmp_path / "report.png"
    assert inspected(capsys, str(going), *STEPS, "--out", str(picture)) == picture
    assert picture.read_bytes().startswith(PNG)


def test_bad_input_is_one_line(bytes_run: Path, tmp_path: Path, error_line: Callable[..., str]):
    def error(*options: str) -> str:
        return error_line("inspect", str(bytes_run), *options)

    line = error("--out", "x.pdf")
    assert "x.pdf" in line and ".html or .png" in line
    assert f"there is no folder {tmp_path}/none" in error("--out", f"{tmp_path}/none/x.html")
    assert "--steps must be at least 2, got 1" in error("--steps", "1")
    line = error("--mesh", "rows=2")
    assert "rows" in line and "data, fsdp, tensor, seq" in line
    assert "tensor" in (line := error("--mesh", "tensor=0")) and "at least 1" in line
    assert "stack.blocks.layer" in (line := error("--mesh", "tensor=3")) and "tensor=3" in line
    assert "holds no run" in error_line("inspect", str(tmp_path))


def test_without_matplotlib_the_extra_is_named(
    bytes_run: Path, monkeypatch: pytest.MonkeyPatch, error_line: Callable[..., str]
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'rnnscale[plots]'" in error_line("inspect", str(bytes_run))

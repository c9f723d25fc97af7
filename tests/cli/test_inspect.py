"""`rnnscale inspect`: the report of a run, read back."""

import base64
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rnnscale.cli import main

pytest.importorskip("matplotlib", reason="plots need matplotlib")

# The same everywhere, so that what one test compiled another one has.
STEPS = ("--steps", "12")

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """The text of a page by tags. Raises where tags do not close."""

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
            found = dict(attrs)
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
    """In a folder whose name would break a page that it is put into as it is."""
    out = tmp_path_factory.mktemp("runs") / 'a <b> & "c"'
    options = "--model elman --dim 6 --depth 1 --steps 4 --log-every 2 --batch-size 8"
    assert main(["train", "digits", *options.split(), "--out", str(out)]) == 0
    return out


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def inspected(capsys: pytest.CaptureFixture, *arguments: str) -> Path:
    capsys.readouterr()
    assert main(["inspect", *arguments]) == 0
    return Path(capsys.readouterr().out.removeprefix("wrote ").strip())


def test_the_page(run: Path, tmp_path: Path, capsys):
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
    assert page.all("p")[0] == "4 of 4 steps done"
    assert [name for name, _ in page.pictures] == [
        "Curves",
        "Eigenvalues",
        "Time scales",
        "Gradients against lag",
        "Lyapunov exponents",
    ]
    assert all(data.startswith(PNG) for _, data in page.pictures)
    assert any("8 test sequences of 12 steps" in each for each in page.all("p"))
    cells = page.all("td")
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


def test_the_picture_of_a_run_that_goes_on(run: Path, tmp_path: Path, capsys):
    going = shutil.copytree(run, tmp_path / "going")
    config = json.loads((going / "config.json").read_text())
    (going / "config.json").write_text(json.dumps({**config, "steps": 100}))
    page = Page(inspected(capsys, str(going), *STEPS).read_text(encoding="utf-8"))
    assert page.all("p")[0].startswith("4 of 100 steps done; still training, or stopped")
    assert "test_loss" not in page.all("td")  # of an earlier end
    picture = tmp_path / "report.png"
    assert inspected(capsys, str(going), *STEPS, "--out", str(picture)) == picture
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "--out", "x.pdf"], ["x.pdf", ".html or .png"]),
        (["{run}", "--out", "{tmp}/none/x.html"], ["{tmp}/none", "no folder"]),
        (["{run}", "--steps", "1"], ["--steps", "at least 2", "1"]),
        (["{run}", "--mesh", "rows=2"], ["rows", "data, fsdp, tensor, seq"]),
        (["{run}", "--mesh", "tensor=0"], ["tensor", "at least 1"]),
        (["{tmp}"], ["{tmp}", "holds no run"]),
    ],
)
def test_bad_input_is_one_line(arguments, words, run: Path, tmp_path: Path, capsys):
    capsys.readouterr()
    filled = [each.format(run=run, tmp=tmp_path) for each in arguments]
    assert main(["inspect", *filled]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rnnscale: error: ")
    assert all(word.format(tmp=tmp_path) in line for word in words)


def test_without_matplotlib_the_extra_is_named(run: Path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    capsys.readouterr()
    assert main(["inspect", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'rnnscale[plots]'" in line

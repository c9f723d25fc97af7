"""`rnnscale verify` on two small suites, and once on a real one."""

from collections.abc import Callable

import pytest

from rnnscale import verify
from rnnscale.cli import main
from rnnscale.verify import Check, Suite


@pytest.fixture
def two_suites(monkeypatch: pytest.MonkeyPatch):
    suites = [
        Suite("LRU variant", "Author 2000", lambda key: [Check("holds", 1e-8, 1e-5)]),
        Suite("S5", "", lambda key: [Check("holds", 1e-8, 1e-5), Check("breaks", 0.25, 1e-5)]),
    ]
    monkeypatch.setattr(verify, "SUITES", suites)


def test_prints_every_figure_with_its_bound(two_suites, capsys: pytest.CaptureFixture[str]):
    assert main(["verify"]) == 1
    printed = capsys.readouterr().out
    figures = "LRU variant, Author 2000", "holds", "1e-08", "1e-05", "breaks", "0.25", "FAILED"
    assert all(text in printed for text in figures), printed
    assert "2 subjects, 3 checks, 1 failed" in printed


def test_runs_the_named_classes(two_suites, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", "LRU"]) == 0
    assert "1 subjects, 1 checks, 0 failed" in capsys.readouterr().out


def test_runs_what_a_title_names(two_suites, capsys: pytest.CaptureFixture[str]):
    for title in ("LRU variant", "lru variant"):
        assert main(["verify", title]) == 0
        assert "1 subjects, 1 checks, 0 failed" in capsys.readouterr().out


def test_an_unknown_class_is_one_line(two_suites, error_line: Callable[..., str]):
    assert "--seed must be 0 to" in error_line("verify", "LRU", "--seed", str(2**32))
    assert "unknown class with checks 'LRU of others'" in error_line("verify", "LRU of others")
    assert "unknown class 'LRUU'; did you mean 'LRU'" in error_line("verify", "LRUU")
    assert "unknown class with checks 'GLU'" in error_line("verify", "GLU")


def test_a_real_one(capsys: pytest.CaptureFixture[str]):
    assert main(["verify", "BidirectionalRNN"]) == 0
    assert "readout of the last states" in capsys.readouterr().out

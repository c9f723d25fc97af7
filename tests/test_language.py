"""Checks how code and pages are written: phrases that readers stumble over, and long functions."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("rnnscale", "kernels", "benchmarks", "tests", ".ci")
MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"] + [
    path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md"))
]

# Where such a phrase is right, say it in other words all the same.
PHRASES = re.compile(
    r"(?<!there )\b(is|are) none\b|\b(tell|tells|told) (of|which|that|how|by)\b|\b[Ss]o many\b"
    r"|\bnobody's\b|\bmade anew\b|\bas of `|^Of [a-z`]"
)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The comments and the lines of strings of a module, or the lines of a page, and where."""
    if path.suffix == ".md":
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        return
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING, tokenize.FSTRING_MIDDLE):
                lines = token.string.strip("rfb\"'#").splitlines()
                yield from enumerate((line.strip() for line in lines), start=token.start[0])


@pytest.mark.parametrize("folder", [*FOLDERS, "pages"])
def test_no_phrase_that_readers_stumble_over(folder: str) -> None:
    paths = PAGES if folder == "pages" else MODULES
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in paths
        if path != Path(__file__) and (folder == "pages" or path.is_relative_to(ROOT / folder))
        for line, text in prose(path)
        if PHRASES.search(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_functions_are_short() -> None:
    wrong = []
    for path in MODULES:
        limit = 100 if path.is_relative_to(ROOT / "kernels") else 80
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno
                if lines > limit:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}, {lines}")
    assert not wrong, "\n".join(wrong)

"""Checks the pages and the public docstrings: examples run, commands parse, links lead somewhere.

The pages are the README, CONTRIBUTING and the guides, which stand beside the packages that
they describe.
"""

import contextlib
import importlib
import inspect
import math
import os
import pkgutil
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml

import rnnscale
import rnnscale.data
import rnnscale.models
import rnnscale.tasks
import rnnscale_kernels
from benchmarks.__main__ import BENCHMARKS, COMMANDS, load, parse
from rnnscale import verify
from rnnscale.cli._main import _parser
from rnnscale.distributed import StopSignals
from rnnscale.runs import TrainConfig
from rnnscale.sharding import make_mesh
from rnnscale.tasks import TASKS
from rnnscale.verify import CellSubject, cell_matches_oracle

ROOT = Path(__file__).parent.parent
GUIDED = ("benchmarks", "kernels", "rnnscale")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        *(path for folder in GUIDED for path in sorted((ROOT / folder).rglob("*.md"))),
    )
    if path.is_file()
}
README = PAGES["README.md"]
SCRIPT = (ROOT / "benchmarks" / "train_script.py").read_text(encoding="utf-8")
pytestmark = pytest.mark.usefixtures("quick_compilation")
IS_CHECKOUT = (ROOT / "Makefile").is_file() and (ROOT / "rnnscale").is_dir()
needs_checkout = pytest.mark.skipif(
    not IS_CHECKOUT, reason="an installed wheel is tested without its checkout"
)


def public(package: ModuleType) -> dict[str, Any]:
    """The names of a package, with what they stand for: most are imported when they are used."""
    return {name: getattr(package, name) for name in dir(package)}


class Fence(NamedTuple):
    language: str
    code: str
    line: int


class Example(NamedTuple):
    code: str
    line: int
    output: str | None


def fences(text: str) -> list[Fence]:
    found = re.finditer(r"^```(.*)\n((?s:.*?)\n)?```$", text, re.MULTILINE)
    return [Fence(m[1], m[2] or "", text.count("\n", 0, m.start()) + 2) for m in found]


def examples(text: str) -> list[Example]:
    """Python blocks; a text block right after one holds what it prints."""
    # A text block starts after the fence that ends the code, an empty line, and its own fence.
    printed = {block.line - 3: block.code for block in fences(text) if block.language == "text"}
    return [
        Example(block.code, block.line, printed.get(block.line + block.code.count("\n")))
        for block in fences(text)
        if block.language == "python"
    ]


def run(code: str, namespace: dict[str, Any], *, name: str = "README.md", line: int = 1) -> None:
    # With the lines that precede it, so that a traceback names the right one.
    exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)


def commands(text: str) -> Iterator[str]:
    """Command lines of shell blocks, and those named in the text."""
    shell = "".join(block.code for block in fences(text) if block.language == "sh")
    yield from (line for line in shell.replace("\\\n", " ").splitlines() if line.strip())
    for block in fences(text):
        if block.language in ("bash", "yaml"):  # scripts, in which ours are among others
            yield from re.findall(r"\brnnscale [^&\n]+", block.code.replace("\\\n", " "))
    prose = re.sub(r"^```.*\n(?s:.*?)^```$", "", text, flags=re.MULTILINE)
    for command in re.findall(r"`((?:rnnscale|make|python|pip) [^`]+)`", prose):
        is_name = re.fullmatch(r"rnnscale (?:(?:bench|data) )?[a-z]+", command)
        yield f"{command} --help" if is_name else command


def check_command(command: str) -> None:
    """Raises unless it is a command that could run in a clone."""
    words = shlex.split(re.sub(r" > \S+", "", command), comments=True)
    while "=" in words[0]:  # a variable of the environment
        words.pop(0)
    program, *arguments = words
    match Path(program).name:
        case "rnnscale":
            check_rnnscale(arguments)
        case "make":
            targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
            wanted = {word for word in arguments if "=" not in word}
            assert wanted and wanted <= set(targets), f"make has no target: {command}"
        case "python" if arguments[:2] == ["-m", "benchmarks"]:
            name, *given = arguments[2:] or ["all"]
            assert name in (*BENCHMARKS, *COMMANDS), f"no such benchmark: {command}"
            if name in BENCHMARKS:
                parse(name, load(name), given)
        case "python":
            assert (ROOT / arguments[0]).is_file(), f"no such script: {command}"
        case "hf":  # of huggingface_hub, which is not installed here
            assert arguments[0] == "download" and arguments[2] == "--local-dir", command
        case "pip":
            assert arguments[0] == "install" and re.match(r"rnnscale\b|\.$", arguments[1]), command
        case _:
            raise AssertionError(f"nothing here knows how to check: {command}")


def check_rnnscale(arguments: list[str]) -> None:
    if {"--help", "--version", "--print-completion"} & set(arguments):
        with pytest.raises(SystemExit) as end:
            _parser().parse_args(arguments)
        assert end.value.code == 0
        return
    given = vars(_parser().parse_args(arguments))
    if arguments[0] != "train":
        return
    if "mesh" in given and "cpu_devices" in given:
        assert math.prod(given["mesh"].values()) == given["cpu_devices"], arguments
    of_the_process = {"coordinator", "processes", "process", "connect_minutes"}
    for name in {"command", "resume"} | (of_the_process & given.keys()):
        del given[name]
    if "task" in given:
        assert given["task"] in TASKS, f"no such task: {given['task']}"
        TrainConfig.for_task(**{"out": "unused", **given})


@pytest.mark.parametrize(
    ("page", "example"),
    [
        pytest.param(page, example, id=f"{page}:{example.line}")
        for page, text in PAGES.items()
        for example in examples(text)
        if example.code != SCRIPT  # which tests/benchmarks runs, with its arguments
    ],
)
def test_examples_of_the_pages(
    page: str,
    example: Example,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", "120")  # tables are as wide as the terminal lets them be
    monkeypatch.chdir(ROOT)
    run(example.code, {"__name__": "__main__"}, name=page, line=example.line)
    if example.output is not None:
        printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert printed == [line.rstrip() for line in example.output.splitlines()]


@needs_checkout
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_pages(page: str, subtests: pytest.Subtests):
    for command in commands(PAGES[page]):
        with subtests.test(command):
            check_command(command)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_checked(page: str):
    text = PAGES[page]
    blocks = fences(text)
    assert {block.language for block in blocks} <= {"python", "sh", "text", "bash", "yaml"}
    # Each ``` belongs to a block, so that none was missed.
    assert len(re.findall("^ *```", text, re.MULTILINE)) == 2 * len(blocks)
    for block in blocks:
        if block.language == "bash":
            subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
        elif block.language == "yaml":
            assert all(each["kind"] for each in yaml.safe_load_all(block.code))


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 300
    assert len(README.split()) <= 2500


def test_the_readme_has_the_script_in_full():
    assert [example.code for example in examples(README)].count(SCRIPT) == 1


OWN = {
    "rnnscale/cells/README.md": "class FastGRNN",
    "rnnscale/ssm/README.md": "class MovingAverage",
    "rnnscale/training/README.md": "def absolute_error(model, batch):",
}


@pytest.mark.parametrize("page", OWN)
def test_examples_of_ones_own_things_are_short(page: str):
    (example,) = (each for each in examples(PAGES[page]) if OWN[page] in each.code)
    lines = [line for line in example.code.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("import", "from"))]) <= 25


def own(page: str) -> Any:
    """The class that a page defines, without the code that uses it."""
    (example,) = (each for each in examples(PAGES[page]) if OWN[page] in each.code)
    namespace: dict[str, Any] = {}
    run(example.code[: example.code.index("\n\n\n", example.code.index(OWN[page]))], namespace)
    return namespace[OWN[page].split()[1]]


def test_the_cell_of_the_page_is_fast_grnn(key: jax.Array):
    cell = own("rnnscale/cells/README.md")(3, 5, key=key)
    biases = jax.random.normal(key, (2, 5))
    cell = eqx.tree_at(lambda each: (each.bias, each.shift), cell, tuple(biases))

    def oracle(cell: Any, xs: Any, h: Any) -> Any:
        hs = []
        for x in xs:
            both = cell.recurrent @ h + cell.input @ x + cell.bias
            z = 1 / (1 + np.exp(-both))
            h = (1 - z) * np.tanh(both + cell.shift) + z * h
            hs.append(h)
        return h, np.array(hs)

    subject = CellSubject("FastGRNN", "Kusupati 2018", lambda key: cell, oracle, lambda key: [])
    assert all(check.passed for check in cell_matches_oracle(subject, key))


def test_the_layer_of_the_page_keeps_the_laws(key: jax.Array):
    layer, lengths = own("rnnscale/ssm/README.md")(5, key=key), [16, 7, 0, 1]
    xs = jax.random.normal(key, (4, 16, 5))
    for check in (
        verify.step_equals_call(layer, xs),
        verify.chunks_equal_one_call(layer, xs, 8),
        verify.reset_equals_fresh(layer, xs, 7),
        verify.padding_is_inert(layer, xs, lengths),
        verify.padding_spares_gradient(layer, xs, lengths),
    ):
        assert check.passed, check
    expected, decay = np.zeros((4, 5)), 1 / (1 + np.exp(-np.asarray(layer.logit, np.float64)))
    for x in np.moveaxis(np.asarray(xs, np.float64), 1, 0):
        expected = decay * expected + (1 - decay) * x
    with jax.set_mesh(make_mesh(seq=8)):
        state, _ = layer(xs)
    np.testing.assert_allclose(state, expected, rtol=1e-5, atol=1e-6)


def test_the_readme_names_every_class():
    # Tables of figures have names in code too.
    written = re.sub(r"<!-- figures: .*? -->.*?<!-- end -->", "", README, flags=re.DOTALL)
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", written, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"\w+", row)]
    # By their own names: `GatedRecurrentUnit` is one more of a class.
    classes = {
        value.__name__
        for value in public(rnnscale).values()
        if inspect.isclass(value) and not inspect.isabstract(value)
    }
    assert sorted(named) == sorted(classes)


# The classes of `rnn_jax`, and its function that makes an echo state network.
PREDECESSOR = """
    RNN BidirectionalRNN DeepRNN DeepBidirectionalRNN RNNEncoder BidirectionalRNNEncoder BaseCell
    AntiSymmetricRNNCell GatedAntiSymmetricRNNCell LongShortTermMemory LongShortTermMemoryCell
    GatedRecurrentUnit CoupledOscillatoryRNNCell UnitaryEvolutionRNNCell ElmanRNNCell IndRNNCell
    LipschitzRNNCell ClockWorkRNNCell BaseSSMLayer LinearRecurrentUnit SimplifiedStateSpaceLayer
    GLUMixer IdentityMixer FFNMixer NonLinearIdentityMixer DeepStateSpaceModelEncoder
    ReservoirComputer ModularRNN LeakyElmanCell init_reservoir_esn
"""


def test_the_map_from_rnn_jax_has_all_of_its_names_and_only_names_of_ours():
    section = PAGES["rnnscale/interop/README.md"].split("\n## Coming from RNN-JAX\n")[1]
    rows = re.findall(r"^\| (.+) \| (.+) \|$", section.split("\n## ")[0], re.MULTILINE)
    theirs, ours = (
        {name for row in rows for name in re.findall(r"`(\w+)", row[column])} for column in (0, 1)
    )
    assert set(PREDECESSOR.split()) <= theirs
    packages = (rnnscale, rnnscale.cells, rnnscale.layers, rnnscale.models)
    there = {name for package in packages for name in public(package)}
    assert {name for name in ours if name[0].isupper() or "reservoir" in name} <= there


def links(page: str) -> Iterator[tuple[str, str]]:
    """The relative links of a page: the target's path from the root, and the heading's anchor."""
    prose = re.sub(r"^```.*\n(?s:.*?)^```$", "", PAGES[page], flags=re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield (
                os.path.normpath(os.path.join(os.path.dirname(page), path) if path else page),
                anchor,
            )


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    prose = re.sub(r"^```.*\n(?s:.*?)^```$", "", text, flags=re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@needs_checkout
@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    for path, anchor in links(page):
        assert (ROOT / path).exists(), f"{page} links to {path}, which does not exist"
        if anchor:
            assert anchor in anchors(PAGES[path]), f"{path} has no heading #{anchor}"


@needs_checkout
def test_every_page_is_reached_from_the_readme():
    found, left = {"README.md"}, ["README.md"]
    while left:
        new = {path for path, _ in links(left.pop()) if path in PAGES} - found
        found |= new
        left += new
    assert PAGES.keys() - found == set()


@pytest.mark.parametrize(
    "command",
    [
        "rnnscale train digits --step 5",
        "rnnscale train digit",
        "rnnscale train digits --model s6",
        "rnnscale train digits --mesh rows=8",
        "rnnscale train digits --mesh data=4 --cpu-devices 8",
        "rnnscale trian digits",
        "make nothing",
        "python -m benchmarks nothing",
        "unknown",
    ],
)
def test_a_wrong_command_is_found(command: str):
    assert list(commands(f"Try this:\n\n```sh\n{command}  # now\n```\n")) == [f"{command}  # now"]
    with pytest.raises((AssertionError, SystemExit, ValueError, FileNotFoundError)):
        check_command(command)


def test_a_wrong_example_is_found():
    text = "One\n\n```python\nx = 1\nprint(y)\n```\n\n```text\n2\n```\n\n```python\nx\n```\n"
    first, second = examples(text)
    assert first == Example("x = 1\nprint(y)\n", 4, "2\n")
    assert second == Example("x\n", 13, None)
    with pytest.raises(NameError) as caught:
        run(first.code, {}, line=first.line)
    assert caught.traceback[-1].lineno + 1 == 5
    with pytest.raises(NameError):
        run(second.code, {}, line=second.line)


def documented() -> dict[str, str]:
    """The docstrings of what the packages export, and of the methods and bases of classes."""
    found = {}

    def add(name: str, thing: Any) -> None:
        if thing.__doc__:
            found[name] = inspect.cleandoc(thing.__doc__)

    def is_ours(thing: Any) -> bool:
        package = getattr(thing, "__module__", "").split(".")[0]
        return package in ("rnnscale", "rnnscale_kernels") and (
            inspect.isclass(thing) or inspect.isfunction(thing)
        )

    for package in packages():
        add(package.__name__, package)
        for exported in public(package).values():
            bases = exported.__mro__ if inspect.isclass(exported) else (exported,)
            for thing in filter(is_ours, bases):
                methods = vars(thing).values() if inspect.isclass(thing) else ()
                for each in (thing, *filter(inspect.isfunction, methods)):
                    add(f"{thing.__module__}.{each.__qualname__}", each)
    return found


def packages() -> Iterator[ModuleType]:
    for root in (rnnscale, rnnscale_kernels):
        yield root
        for each in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            if each.ispkg:
                yield importlib.import_module(each.name)


DOCUMENTED = documented()


class Enough(Exception):
    """Ends an example that would go on for ever."""


def surroundings() -> dict[str, Any]:
    """What examples in docstrings take for granted."""
    key = jax.random.key(0)
    steps = []

    def train_step(state, batch):
        assert batch["inputs"].shape == (64, 64, 1)
        steps.append(batch)
        if len(steps) == 3:
            raise Enough
        return state, {}

    class InterruptedSoon(StopSignals):
        def __enter__(self):
            entered = super().__enter__()
            threading.Timer(0.02, signal.raise_signal, (signal.SIGINT,)).start()
            return entered

    return {
        **public(rnnscale),
        **public(rnnscale.data),
        **public(rnnscale.tasks),
        "cell": rnnscale.LongShortTermMemoryCell(1, 8, key=key),
        **public(rnnscale.models),
        "jax": jax,
        "jnp": jnp,
        "key": key,
        "layer": rnnscale.S5(1, 8, key=key),
        "encoder": rnnscale.RNNEncoder(rnnscale.LongShortTermMemoryCell(1, 8, key=key)),
        "model": rnnscale.models.LanguageModel(
            256, make_layer=lambda key: rnnscale.LRU(4, 4, key=key), dim=4, depth=1, key=key
        ),
        "optax": optax,
        "xs": jnp.ones((2, 12, 1)),
        "tokens": jnp.zeros((2, 12), jnp.int32),
        "state": None,
        "task": rnnscale.tasks.load_task("digits"),
        "train_step": train_step,
        "StopSignals": InterruptedSoon,
    }


@pytest.mark.parametrize("name", [n for n, doc in DOCUMENTED.items() if examples(doc)])
def test_examples_of_the_docstrings(name: str):
    for example in examples(DOCUMENTED[name]):
        with contextlib.suppress(Enough):
            run(example.code, surroundings(), name=name, line=example.line)


def test_docstrings_are_reached():
    assert {
        "rnnscale",
        "rnnscale.models._classifier.SequenceClassifier",
        "rnnscale._base.Stepwise.step",
        "rnnscale._base.SequenceLayer",  # of which S5 is one
        "rnnscale.data.pipelines._stream.batches",
        "rnnscale_kernels.linear_scan._api.linear_scan",
    } <= DOCUMENTED.keys()
    assert not [n for n, doc in DOCUMENTED.items() if re.search(">>> |```py$", doc, re.MULTILINE)]

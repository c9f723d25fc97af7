"""The parsers of all commands: help, defaults, examples, completion, and what they cost."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from rnnscale.cli import main
from rnnscale.cli._main import _parser
from rnnscale.cli._parser import Parser
from rnnscale.runs import MODELS, TrainConfig


def parsers(parser: argparse.ArgumentParser) -> Iterator[Parser]:
    """A parser and those of all its commands."""
    assert isinstance(parser, Parser)
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


PARSERS = {parser.prog: parser for parser in parsers(_parser())}


@pytest.mark.parametrize("name", PARSERS)
def test_the_help_of_every_option_has_its_default(name: str):
    parser = PARSERS[name]
    told = {
        action.option_strings[-1]: parser._get_formatter()._expand_help(action)
        for action in parser._actions
        if action.option_strings and action.nargs != 0 and not action.required
    }
    told.pop("--print-completion", None)
    lacking = [option for option, text in told.items() if not re.search(r"\bdefault: \S", text)]
    assert not lacking, f"{name}: end the help of {', '.join(lacking)} with 'default: ...'"


@pytest.mark.parametrize("name", PARSERS)
def test_every_help_ends_with_two_examples_that_parse(name: str):
    parser = PARSERS[name]
    assert len(parser.examples) >= 2
    assert parser.format_help().splitlines()[-len(parser.examples) - 1] == "examples:"
    for example in parser.examples:
        words = shlex.split(example.partition(" | ")[0])
        words = words[words.index("rnnscale") :]
        assert words[: len(name.split())] == name.split()
        if "--help" in words:
            continue
        given = vars(_parser().parse_args(words[1:]))
        if words[1] in ("train", "plan") and "task" in given:
            fields = TrainConfig.__dataclass_fields__
            options = {option: value for option, value in given.items() if option in fields}
            TrainConfig.for_task(**{"out": "", **options})


def test_defaults_are_those_of_a_run(capsys: pytest.CaptureFixture[str]):
    for name in ("learning_rate", "dim", "save_every", "dtype", "optimiser"):
        option = next(each for each in PARSERS["rnnscale train"]._actions if each.dest == name)
        assert str(option.help).endswith(f"default: {getattr(TrainConfig, name)}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train digits --model ltsm", "unknown model 'ltsm'; did you mean 'lstm'? Known: s5, "),
        ("train digits --model LRU2", "did you mean 'lru'"),
        ("train digits --dtype float16", "unknown dtype 'float16'; did you mean 'bfloat16'?"),
        ("plan digit --target cpu:8", "unknown task 'digit'; did you mean 'digits'?"),
        ("trian", "unknown command 'trian'; did you mean 'train'?"),
        ("zzz", "unknown command 'zzz'; known: train, "),
        ("data chek x", "unknown action 'chek'; did you mean 'check'?"),
        ("export runs/x --out y --platforms gpu", "unknown platform 'gpu'"),
    ],
)
def test_a_wrong_choice_names_the_nearest(
    arguments: str, message: str, error_line: Callable[..., str]
):
    assert message in error_line(*arguments.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "train --data w.csv --label y --modle gru",
            "unknown option --modle; did you mean --model?",
        ),
        ("train digits --sttps=3", "unknown option --sttps; did you mean --steps?"),
        ("train --sttps 3", "unknown option --sttps; did you mean --steps?"),
        ("train digits -steps 3", "unknown option -steps; did you mean --steps?"),
        ("data describe w.csv --lable y", "unknown option --lable; did you mean --label?"),
        ("train digits --zzzz 3", "unknown option --zzzz (see rnnscale train --help)"),
        ("train digits --seed -1", "seed must be at least 0, got -1"),
        ("train wide.csv", "for your own data, write --data wide.csv"),
        ("plan wide.csv --target cpu:8", "for your own data, write --data wide.csv"),
    ],
)
def test_a_wrong_option_is_named(arguments: str, message: str, error_line: Callable[..., str]):
    assert message in error_line(*arguments.split())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_name_of_its_class_too(name: str):
    parse = _parser().parse_args
    assert parse(["train", "digits", "--model", MODELS[name].class_name]).model == name
    assert parse(["verify", name]).classes == [MODELS[name].class_name]


def test_options_of_a_model_are_numbers_words_and_constants():
    arguments = _parser().parse_args(
        ["train", "digits", "--cell", "a=3,b=-0.5,c=none,d=true,e=zoh"]
    )
    assert arguments.cell == {"a": 3, "b": -0.5, "c": None, "d": True, "e": "zoh"}


def test_models_lists_all(capsys: pytest.CaptureFixture[str]):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [name, entry.class_name] for name, entry in MODELS.items()
    ]
    cornn = next(line for line in lines if line.startswith("cornn "))
    assert cornn.endswith("The coupled oscillatory network, coRNN. Options: dt, gamma, epsilon.")
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("shell", "command"), [("bash", "bash -n"), ("zsh", "zsh -n"), ("fish", "fish --no-execute")]
)
def test_completions(shell: str, command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", shell])
    assert end.value.code == 0
    script = capsys.readouterr().out
    for word in ("generate", "learning-rate", "lipschitz-gated", "japanese-vowels", "bfloat16"):
        assert word in script
    try:
        checked = subprocess.run(command.split(), input=script, text=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip(f"{shell} is not installed")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_bash_completes_commands_options_and_values(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    script = capsys.readouterr().out

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        ask = (
            f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}\n"
            "_shtab_rnnscale; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(
            ["bash", "-c", f"{script}\n{ask}"], text=True, capture_output=True, check=True
        )
        return done.stdout.split()

    assert completed("rnnscale tr") == ["train"]
    assert completed("rnnscale train dig") == ["digits", "digits-permuted"]
    assert completed("rnnscale train digits --rec") == ["--recurrence-rate"]
    assert completed("rnnscale train digits --model ls") == ["lstm"]


@pytest.mark.parametrize("command", ["tasks", "models", "info", "experiment", "train --help"])
def test_a_reader_may_leave(command: str, monkeypatch: pytest.MonkeyPatch):
    """As after `| head -1`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(command.split()) == 141


def test_another_broken_pipe_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def broken(_: argparse.Namespace) -> int:
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr("rnnscale.cli._tasks._tasks", broken)
    read, write = os.pipe()
    with os.fdopen(read), os.fdopen(write, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(BrokenPipeError, match="of a worker"):
            main(["tasks"])


WITHOUT_JAX = (
    "--help",
    "train --help",
    "--version",
    "train digits --dim 0",
    "train digits --model ltsm",
    "train digits --model cornn --cell dtt=1",
    "train digits --start-from missing",
    "train --data missing",
    "eval missing",
    "predict missing --data new.csv --out predictions.csv",
    "generate missing",
    "inspect missing",
    "export missing --out step",
    "plan digits --target cpu:8 --mesh rows=2",
    "verify LRUU",
    "bench scan --implementation fast",
    "data check missing",
)


def codes_and_packages(*commands: str) -> list[str]:
    """For each command its exit code and the large packages loaded so far, in a fresh process."""
    code = f"""
import sys
from rnnscale.cli import main
for arguments in {commands}:
    try:
        code = main(arguments.split())
    except SystemExit as end:
        code = end.code
    large = {{"jax", "grain", "optax", "equinox", "sklearn", "orbax"}} & sys.modules.keys()
    print("loaded:", code, *large)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return re.findall("loaded: (.*)", done.stdout)


def test_help_and_refusals_import_no_jax():
    refused = len(WITHOUT_JAX) - 3
    assert codes_and_packages(*WITHOUT_JAX) == ["0"] * 3 + ["2"] * refused


def test_refusing_to_resume_a_missing_run_imports_jax_alone():
    """It needs jax, through which the processes of a run agree on what to do."""
    assert codes_and_packages("train --resume --out missing") == ["2 jax"]

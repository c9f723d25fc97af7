"""`rnnscale generate`: text from the trained model of a run, or from a folder of `transformers`."""

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from rnnscale._errors import UserError
from rnnscale.cli._text_codec import ByteCodec, Text, TextCodec, TokenizerCodec
from rnnscale.interop import TransformersFolder
from rnnscale.runs import RunFolder

# Tokens drawn by one call of the compiled program.
_BLOCK = 32


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "generate",
        help="write text with a trained model",
        description="Writes text with the model of a run on `bytes` or on your own text, from its "
        "newest or best checkpoint; or with a Mamba, Mamba-2, RecurrentGemma or xLSTM in a "
        "folder of transformers, with its tokenizer. A prompt of any length is read in constant "
        "memory, as the beginning of a text. The text ends where the model ends it, or after "
        "--steps tokens, which are bytes for the model of a run. Several prompts form a batch; "
        "the text of each does not depend on the others.",
        examples=(
            "rnnscale generate runs/text --prompt 'import ' --steps 200 --temperature 0.8",
            "rnnscale generate runs/text --prompt-file beginning.txt --top-k 20 --seed 1",
            "rnnscale generate mamba-130m-hf --prompt 'A river' --steps 50 --temperature 0",
        ),
    )
    parser.set_defaults(command=_generate)
    parser.add_argument(
        "folder", metavar="DIR", help="folder of a run, or of a model of transformers"
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="beginning of the text; can be repeated; default: empty",
    )
    parser.add_argument(
        "--prompt-file",
        action="append",
        default=[],
        metavar="FILE",
        help="a file with the beginning of the text; can be repeated; default: none",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=256,
        metavar="N",
        help="largest number of tokens; default: %(default)s",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="0 takes the likeliest token, 1 samples from the model; default: %(default)g",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="sample from the K likeliest tokens; default: from all",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="seed of the sampling; default: %(default)s",
    )


def _generate(arguments: argparse.Namespace) -> int:
    _check_options(arguments)
    # As bytes, including those that are not UTF-8.
    prompts = [text.encode("utf-8", "surrogateescape") for text in arguments.prompt]
    prompts += [_read(file) for file in arguments.prompt_file]
    folder = TransformersFolder(arguments.folder)
    codec: TextCodec = TokenizerCodec(folder) if folder.is_model else ByteCodec()
    if not folder.is_model and not RunFolder(arguments.folder).is_run:
        raise UserError(
            f"{arguments.folder} is not the folder of a run or of a model of transformers: it has "
            "no config.json. Name a folder that `rnnscale train` or save_pretrained wrote, or the "
            "folder of a model that you have downloaded"
        )
    if arguments.top_k is not None and not 1 <= arguments.top_k <= codec.vocab:
        raise UserError(
            f"--top-k must be 1 to {codec.vocab}, the number of {codec.unit}s, got "
            f"{arguments.top_k}"
        )
    texts = [codec.begin(prompt) for prompt in prompts or [b""]]
    import jax

    from rnnscale.interop import load_transformers
    from rnnscale.sharding import make_mesh

    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        if folder.is_model:
            model = load_transformers(arguments.folder)
        else:
            model = _model_of_run(arguments.folder, mesh)
        blocks = _blocks(model, [text.prompt for text in texts], codec.end_tokens, arguments)
        if len(texts) == 1:
            _print_as_it_comes(texts[0], (rows[0] for rows in blocks))
        else:
            _print_one_by_one(texts, blocks)
    return 0


def _model_of_run(folder: str, mesh: Any) -> Any:
    from rnnscale.runs import load_run

    # The model does not depend on the text, which may be gone.
    saved = load_run(folder, mesh, text=None, seq_len=None)
    if saved.spec.metric != "bits_per_byte":
        raise UserError(
            f"generate needs a model of bytes, and {folder} is a run of {saved.spec.name!r}: name "
            "the folder of a run of `rnnscale train bytes`, or on your own text"
        )
    return saved.model


def _check_options(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed must be 0 to 2**32 - 1, got {arguments.seed}")
    if arguments.steps < 1:
        raise UserError(f"--steps must be at least 1, got {arguments.steps}")
    if not 0 <= arguments.temperature < math.inf:
        raise UserError(f"--temperature must be at least 0 and finite, got {arguments.temperature}")


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"--prompt-file {file} can't be read ({error.strerror})") from error


def _blocks(
    model: Any,
    prompts: Sequence[Sequence[int]],
    end_tokens: Set[int],
    arguments: argparse.Namespace,
) -> Iterator[list[list[int]]]:
    """The tokens after each prompt, block by block, until all texts have ended. Blocks after the
    end of a text are empty."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rnnscale.models import generate

    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    prompt_tokens = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in zip(prompt_tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    write = eqx.filter_jit(generate)
    options = {
        "steps": min(_BLOCK, arguments.steps),
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "key": jax.random.key(arguments.seed),
    }
    state, tokens = write(
        model, jnp.asarray(prompt_tokens), lengths=jnp.asarray(lengths), **options
    )
    ended = [False] * len(prompts)
    for drawn in range(0, arguments.steps, _BLOCK):
        if drawn:
            number = jnp.asarray(drawn)
            state, tokens = write(model, tokens[:, -1:], state, drawn=number, **options)
        rows = np.asarray(tokens)[:, : arguments.steps - drawn].tolist()
        texts = [
            [] if end else _before(row, end_tokens) for row, end in zip(rows, ended, strict=True)
        ]
        if any(-1 in text for text in texts):
            raise UserError(
                f"the model in {arguments.folder} can't write: its logits are NaN, so parameters "
                "are damaged, or its training has diverged"
            )
        yield texts
        ended = [
            end or not end_tokens.isdisjoint(row) for row, end in zip(rows, ended, strict=True)
        ]
        if all(ended):
            return


def _before(tokens: Sequence[int], end_tokens: Set[int]) -> list[int]:
    """The tokens before the first that ends the text."""
    return list(itertools.takewhile(lambda token: token not in end_tokens, tokens))


def _print_as_it_comes(text: Text, blocks: Iterator[Sequence[int]]) -> None:
    sys.stdout.write(text.start())
    for block in blocks:
        sys.stdout.write(text.more(block))
        sys.stdout.flush()
    sys.stdout.write(text.end() + "\n")


def _print_one_by_one(texts: Sequence[Text], blocks: Iterator[list[list[int]]]) -> None:
    parts = [[text.start()] for text in texts]
    for block in blocks:
        for text, part, tokens in zip(texts, parts, block, strict=True):
            part.append(text.more(tokens))
    for number, (text, part) in enumerate(zip(texts, parts, strict=True), start=1):
        print(f"--- prompt {number}")
        print("".join(part) + text.end())

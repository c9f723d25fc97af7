"""`rnnscale generate`: text from the trained model of a run."""

import argparse
import codecs
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnscale._errors import UserError
from rnnscale.runs import RunFolder

if TYPE_CHECKING:
    import numpy as np

# Tokens drawn by one call of the compiled program.
_BLOCK = 32
# The byte before and after each file in the training of a model of bytes.
_END = 0


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "generate",
        help="write text with the trained model of a run",
        description="Writes text with the model of a run on `bytes` or on your own text, from its "
        "newest checkpoint. A prompt of any length is read in constant memory, as the beginning of "
        "a file. The text ends where the model ends the file, or after --steps bytes. Several "
        "prompts form a batch; "
        "the text of each does not depend on the others.",
        examples=(
            "rnnscale generate runs/text --prompt 'import ' --steps 200 --temperature 0.8",
            "rnnscale generate runs/text --prompt-file beginning.txt --top-k 20 --seed 1",
        ),
    )
    parser.set_defaults(command=_generate)
    parser.add_argument("run", metavar="RUN", help="folder of the run")
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
        help="largest number of bytes; default: %(default)s",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="0 takes the likeliest byte, 1 samples from the model; default: %(default)g",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="sample from the K likeliest bytes; default: from all",
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
    prompts = prompts or [b""]
    RunFolder.existing(arguments.run)
    import jax

    from rnnscale.runs import load_run
    from rnnscale.sharding import make_mesh

    # The model does not depend on the text, which may be gone.
    saved = load_run(arguments.run, make_mesh(devices=jax.devices()[:1]), text=None, seq_len=None)
    if saved.spec.metric != "bits_per_byte":
        raise UserError(
            f"generate needs a model of bytes, and {arguments.run} is a run of "
            f"{saved.spec.name!r}: name the folder of a run of `rnnscale train bytes`, or on your "
            "own text"
        )
    with jax.set_mesh(saved.mesh):
        blocks = _blocks(saved.model, prompts, arguments)
        if len(prompts) == 1:
            _print_as_it_comes(prompts[0], (rows[0] for rows in blocks))
        else:
            _print_one_by_one(prompts, blocks)
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed must be 0 to 2**32 - 1, got {arguments.seed}")
    if arguments.steps < 1:
        raise UserError(f"--steps must be at least 1, got {arguments.steps}")
    if not 0 <= arguments.temperature < math.inf:
        raise UserError(f"--temperature must be at least 0 and finite, got {arguments.temperature}")
    if arguments.top_k is not None and not 1 <= arguments.top_k <= 256:
        raise UserError(f"--top-k must be 1 to 256, the number of bytes, got {arguments.top_k}")


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"--prompt-file {file} can't be read ({error.strerror})") from error


def _blocks(
    model: Any, prompts: Sequence[bytes], arguments: argparse.Namespace
) -> Iterator[list[bytes]]:
    """The text after each prompt, block by block, until all texts have ended. Blocks after the end
    of a text are empty."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rnnscale.models import generate

    lengths = np.array([1 + len(prompt) for prompt in prompts], np.int32)
    prompt_tokens = np.full((len(prompts), lengths.max()), _END, np.int32)
    for row, prompt in zip(prompt_tokens, prompts, strict=True):
        row[1 : 1 + len(prompt)] = np.frombuffer(prompt, np.uint8)
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
    ended = np.zeros(len(prompts), bool)
    for drawn in range(0, arguments.steps, _BLOCK):
        if drawn:
            number = jnp.asarray(drawn)
            state, tokens = write(model, tokens[:, -1:], state, drawn=number, **options)
        block = np.asarray(tokens)[:, : arguments.steps - drawn]
        yield [_text(row, has_ended) for row, has_ended in zip(block, ended, strict=True)]
        ended |= (block == _END).any(axis=1)
        if ended.all():
            return


def _text(tokens: "np.ndarray", ended: bool) -> bytes:
    """The bytes before the end of the file."""
    return b"" if ended else bytes(tokens.tolist()).split(bytes([_END]))[0]


def _print_as_it_comes(prompt: bytes, blocks: Iterator[bytes]) -> None:
    # A character may begin in one block and end in the next.
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    sys.stdout.write(decode(prompt))
    for block in blocks:
        sys.stdout.write(decode(block))
        sys.stdout.flush()
    sys.stdout.write(decode(b"", final=True) + "\n")


def _print_one_by_one(prompts: Sequence[bytes], blocks: Iterator[list[bytes]]) -> None:
    texts = list(prompts)
    for block in blocks:
        texts = [text + more for text, more in zip(texts, block, strict=True)]
    for number, text in enumerate(texts, start=1):
        print(f"--- prompt {number}")
        print(text.decode("utf-8", "replace"))

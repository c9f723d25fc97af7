"""Bytes of text: layers with the same number of parameters, trained on the same bytes, beside count
models and compression programs."""

import lzma
import zlib
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from time import process_time
from types import MappingProxyType
from typing import Any

import numpy as np

from rnnscale import runs
from rnnscale._errors import UserError
from rnnscale.data import SequenceSource
from rnnscale.experiments._experiment import Entry, Experiment, Result
from rnnscale.experiments._train import QUIET, train
from rnnscale.tasks import count_model_bits_per_byte, load_task

PARAMETERS = 1_000_000

ORDERS = (2, 3, 4, 5)
# gzip is zlib with a header. Its window has 32 KB, so of the training text it remembers the end.
COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {
        "gzip": lambda text: zlib.compress(text, level=9),
        "xz": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
    }
)

PROMPT = b"\0def "


def measure(options: Mapping[str, Any], seed: int, folder: Path) -> Result | None:
    """Trains a model, measures it with its state carried through each file, and lets it write."""
    if "baseline" in options:
        return _baseline(options)
    result = train("bits_per_byte", options, seed, folder)
    if result is None:
        return None
    summary = runs.RunFolder(folder).summary()
    assert summary is not None  # the training has ended
    more = {**result.more, "tokens_per_second": summary["tokens_per_second"]}
    return result._replace(more=more, sample=sample(folder))


def sample(folder: Path, *, steps: int = 400, temperature: float = 0.8) -> str:
    """The beginning of a file, as the trained model of a run continues it."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from rnnscale.models import generate
    from rnnscale.sharding import make_mesh

    saved = runs.load_run(folder, make_mesh(devices=jax.devices()[:1]))
    prompt = jnp.asarray(np.frombuffer(PROMPT, np.uint8).astype(np.int32))
    with jax.set_mesh(saved.mesh):
        _, tokens = eqx.filter_jit(generate)(
            saved.model, prompt, steps=steps, temperature=temperature, key=jax.random.key(0)
        )
    drawn: list[int] = np.asarray(tokens).tolist()
    # A file ends with 0, and a model whose logits are NaN writes -1.
    written = list(takewhile(lambda token: token > 0, drawn))
    return (PROMPT[1:] + bytes(written)).decode("utf-8", "replace")


def _baseline(options: Mapping[str, Any]) -> Result:
    """The figure of a count model or a compression program that has read the training text."""
    if unknown := options.keys() - {"task", "baseline", "order", "text"}:
        raise UserError(
            f"{options['baseline']} is a baseline, not trained in steps; it has no "
            f"{', '.join(sorted(unknown))}. Name the rows that are trained (--row)"
        )
    begin = process_time()
    documents = load_task("bytes", seq_len=1, text=options.get("text")).sequences
    read, test = _predicted(documents["train"]), _predicted(documents["test"])
    if options["baseline"] == "count":
        figure = count_model_bits_per_byte(read, test, options["order"])
    else:
        figure = compressed_bits_per_byte(read, test, COMPRESSORS[options["baseline"]])
    return Result(figure, parameters=0, seconds=process_time() - begin, more={})


def _predicted(documents: SequenceSource) -> np.ndarray:
    """All bytes that a model has to predict: those of each document, and its end."""
    lengths = documents.lengths.tolist()
    labels = [documents.read(i, 0, length)["labels"] for i, length in enumerate(lengths)]
    return np.concatenate(labels).astype(np.uint8)


def compressed_bits_per_byte(
    read: np.ndarray, test: np.ndarray, compress: Callable[[bytes], bytes]
) -> float:
    """The bits by which a compressed text grows if a test text follows it, per byte of that."""
    grown = len(compress(read.tobytes() + test.tobytes())) - len(compress(read.tobytes()))
    return 8 * grown / len(test)


# 9800 batches of 8 windows of 256 bytes are 20 million bytes, two and a fifth times the training
# text. The rates fall over all steps, so every training ends with its last one.
_SHARED: Mapping[str, Any] = MappingProxyType(
    {
        "task": "bytes",
        "rows": "lanes",
        "batch_size": 8,
        "seq_len": 256,
        "steps": 9800,
        "schedule": "cosine",
        "learning_rate": 8e-3,
        "evaluate_every": 1400,
        "sample_bytes": 0,
        "cpu_minutes": 60.0,
        **QUIET,
    }
)
# The sizes at which each model has as many parameters as the others, to 3 %.
_MODELS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "mamba": {"depth": 3, "dim": 208, "state_dim": 16},
        "lru": {"depth": 5, "dim": 192, "state_dim": 192},
        "mingru": {"depth": 5, "dim": 240, "weight_decay": 0.0},
        "minlstm": {"depth": 4, "dim": 232, "weight_decay": 0.0},
        "slstm": {"depth": 2, "dim": 200},
        "s5": {"depth": 5, "dim": 240, "state_dim": 240},
        "mlstm": {"depth": 3, "dim": 152, "state_dim": 152},
        "griffin": {"depth": 4, "dim": 128, "state_dim": 128},
        "lstm": {"depth": 2, "dim": 224, "learning_rate": 4e-3, "weight_decay": 0.0},
        "gru": {"depth": 2, "dim": 248, "learning_rate": 4e-3, "weight_decay": 0.0},
        "mamba-attention": {
            "model": "mamba",
            "every": [3, "attention"],
            "every_cell": {"window": 256},
            "depth": 3,
            "dim": 224,
            "state_dim": 16,
        },
    }
)


def _entries() -> list[Entry]:
    counted = [
        Entry(f"count-{order}", {"task": "bytes", "baseline": "count", "order": order})
        for order in ORDERS
    ]
    compressed = [Entry(name, {"task": "bytes", "baseline": name}) for name in COMPRESSORS]
    trained = [
        Entry(name, {**_SHARED, "model": name, **options}) for name, options in _MODELS.items()
    ]
    return [*counted, *compressed, *trained]


LANGUAGE = (
    Experiment(
        name="bytes",
        description="the next byte of Python's standard library: a million parameters, 20 MB read",
        entries=_entries(),
        measure=measure,
        metric="test bits per byte",
        better="lower",
        differs=(
            "no paper has this corpus. Each model has a million parameters, to 3 %, in blocks of "
            "its authors, and reads 20 million bytes, 2.2 times the training text, in 9800 batches "
            "of 8 windows of 256 bytes. All have the same optimiser, whose rate falls to zero over "
            "all steps; the weights of layers decay by 0.05, those of cells do not. The rate is "
            "from a search with S5 and Griffin; for LSTM and GRU it is half as high, from a search "
            "with GRU over 1000 batches. Fourteen layers read half a million bytes; the eight best "
            "are here, with LSTM, GRU and a hybrid of Mamba and attention. GLA, IndRNN, attention, "
            "RG-LRU, linear attention and LinOSS were worse. Delta rules, RWKV-7, S4D and Mamba-2 "
            "were not among them, since they take longer than an hour of one core. The state is "
            "carried from window to window, in the test too, so that a model has read each file "
            "from its beginning. Count models and compression programs have read the training text "
            "once: the figure of a program is the growth of the compressed training text by the "
            "test text. gzip remembers the last 32 KB only; xz all of it, near copies included, "
            "such as the tables of codecs that are 18 % of the test text."
        ),
        minutes=560,
        seeds=(0,),
    ),
)

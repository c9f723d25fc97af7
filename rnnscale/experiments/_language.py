"""Bytes of text: all layers with the same number of parameters, trained on the same bytes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from rnnscale.experiments._experiment import Entry, Experiment
from rnnscale.experiments._pixels import LIPSCHITZ
from rnnscale.experiments._train import QUIET, train

_SHARED = {
    "task": "bytes",
    "steps": 250,
    "batch_size": 16,
    "seq_len": 256,
    "depth": 2,
    "state_dim": 64,
    "learning_rate": 8e-3,
    "weight_decay": 0.05,
    **QUIET,
}

# The widths at which each model has 200,000 parameters, to 3 %. uRNN is missing because its output
# is twice as wide as its input, so a residual block can't contain it.
_DIMS: Mapping[str, int] = {
    "s5": 176,
    "lru": 149,
    "rglru": 144,
    "linear-attention": 148,
    "elman": 144,
    "leaky-elman": 144,
    "wilson-cowan": 144,
    "indrnn": 168,
    "lstm": 92,
    "gru": 102,
    "gru-cho": 102,
    "antisymmetric": 144,
    "antisymmetric-gated": 128,
    "clockwork": 144,
    "lipschitz": 128,
    "lipschitz-gated": 117,
    "cornn": 128,
    "exprnn": 144,
    "nnrnn": 128,
    "mingru": 144,
    "minlstm": 128,
}

_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "lru": {"cell": {"r_min": 0.9, "r_max": 0.999}},
    "indrnn": {"cell": {"input_std": 0.1}},
    "clockwork": {"cell": {"periods": [1, 2, 4, 8]}},
    "lipschitz": {"cell": LIPSCHITZ},
    "lipschitz-gated": {"cell": LIPSCHITZ},
}

LANGUAGE = (
    Experiment(
        name="bytes",
        description="the next byte of Python's standard library, at equal parameters and bytes",
        entries=[
            Entry(model, {**_SHARED, "model": model, "dim": dim, **_OPTIONS.get(model, {})})
            for model, dim in _DIMS.items()
        ],
        measure=partial(train, "bits_per_byte"),
        metric="test bits per byte",
        better="lower",
        differs=(
            "no paper has this corpus. Each model has two blocks (norm, layer, half GLU) "
            "between an embedding and logits, 200,000 parameters to 3 %, and reads 250 batches of "
            "16 windows of 256 bytes, one million bytes, with the same optimiser and rates."
        ),
        minutes=30,
        seeds=(0,),
    ),
)

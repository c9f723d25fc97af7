"""Argument specs of `linear_attention`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..linear_attention import ATTENTION, linear_attention
from . import _reference
from ._baselines import ATTENTION_BASELINES
from ._call_arguments import OpCallArguments, Run, rounded, to_jax

INPUTS = ("query", "key", "value", "log_decay", "erase")


@dataclass(frozen=True)
class AttentionArguments(OpCallArguments):
    """The arguments of one call of `linear_attention`, which is the delta rule if something is
    erased.

    - `groups`: the heads of queries, keys and what is erased; 0 for as many as `heads`.
    - `decay`: "none", "head" or "channel".
    - `extreme`: decays of zero, of one and of any size in between; steps that erase twice or
        nothing; and runs of steps with one key.
    - `ragged`: rows have resets and lengths of their own.
    """

    operation = "linear_attention"
    function, op = linear_attention, ATTENTION

    batch: tuple[int, ...] = (2,)
    time: int = 64
    heads: int = 2
    groups: int = 0
    key: int = 8
    value: int = 8
    decay: str = "none"
    erase: bool = False
    dtype: str = "float32"
    extreme: bool = False
    ragged: bool = False
    reverse: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("erase", "extreme", "ragged", "reverse") if getattr(self, name)]
        heads = f"{self.groups or self.heads}to{self.heads}heads{self.key}to{self.value}"
        shape = "x".join(map(str, (*self.batch, self.time)))
        return "-".join([shape, heads, self.dtype, self.decay, *flags])

    @property
    def baselines(self) -> Mapping[str, Run]:
        return ATTENTION_BASELINES

    def sizes(self) -> dict[str, Any]:
        return {
            "batch": math.prod(self.batch),
            "time": self.time,
            "heads": self.heads,
            "groups": self.groups or self.heads,
            "key": self.key,
            "value": self.value,
            "decay": self.decay,
            "erase": self.erase,
            "dtype": self.dtype,
        }

    def draw(self, key: jax.Array) -> tuple[Any, tuple]:
        keys = jax.random.split(key, 6)
        rows, groups = (*self.batch, self.time), self.groups or self.heads

        def unit(key):
            x = jax.random.normal(key, (*rows, groups, self.key))
            return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        q, k = unit(keys[0]), unit(keys[1])
        v = jax.random.normal(keys[2], (*rows, self.heads, self.value))
        erase = 2 * jax.random.uniform(keys[3], (*rows, groups, 1)) * k if self.erase else None
        decays = {"head": (self.heads,), "channel": (self.heads, self.key)}
        log_decay = None
        if self.decay != "none":
            log_decay = jax.random.uniform(
                keys[4], (*rows, *decays[self.decay]), minval=-0.2, maxval=0
            )
        start = jax.random.normal(keys[5], (*self.batch, self.heads, self.key, self.value))
        q, k, v, erase = jax.tree.map(lambda x: x.astype(self.dtype), (q, k, v, erase))
        return start, (q, k, v, log_decay, erase)

    def minimal_bytes(self, mode: str) -> int:
        # The forward pass reads all inputs and writes y. The backward pass reads them and the
        # cotangent of y, and writes their gradients. A decay by channel is in float32.
        passes = {"forward": 1, "gradient": 3}[mode]
        groups = self.groups or self.heads
        narrow = (2 + self.erase) * groups * self.key + self.heads * self.value
        decays = {"none": 0, "head": 1, "channel": self.key}[self.decay] * self.heads
        outputs = {"forward": 1, "gradient": 2}[mode] * self.heads * self.value
        size = jnp.dtype(self.dtype).itemsize
        numbers = passes * narrow * size + outputs * size + passes * 4 * decays
        return math.prod(self.batch) * self.time * numbers

    def products(self, mode: str) -> int:
        # Chunks of 64 steps. The gradient computes each chunk twice, and its backward pass has two
        # products for each one.
        within = 64 * (self.key + self.value) * (1 + self.erase)
        between = (2 + self.erase) * self.key * self.value
        passes = {"forward": 1, "gradient": 4}[mode]
        steps = math.prod(self.batch) * self.time * self.heads
        return 2 * passes * steps * (within + between)

    @property
    def bound(self) -> float:
        # The sums over a chunk have 64 terms, and are of the size of one if nothing decays.
        return 1e-5 if self.dtype == "float32" else super().bound

    @property
    def input_names(self) -> tuple[str, ...]:
        return INPUTS

    def arrays(self, seed: int = 0) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        rows, ends = (*self.batch, self.time), (*self.batch, self.heads, self.key, self.value)
        groups = self.groups or self.heads

        def unit():
            x = rng.normal(size=(*rows, groups, self.key))
            return x / np.linalg.norm(x, axis=-1, keepdims=True)

        key, log_decay = unit(), None
        strength = rng.uniform(0, 2, (*rows, groups, 1))
        if self.decay != "none":
            channels = {"head": (), "channel": (self.key,)}[self.decay]
            log_decay = -0.2 * rng.exponential(size=(*rows, self.heads, *channels))
        if self.extreme:
            strength = rng.choice([0.0, 2.0, 1.0], strength.shape)
            same = rng.random((*rows, groups, 1)) < 0.5
            for t in range(1, self.time):  # the key of the step before
                at = (*(slice(None) for _ in self.batch), t)
                before = (*at[:-1], t - 1)
                key[at] = np.where(same[at], key[before], key[at])
            if log_decay is not None:
                chosen = rng.choice([0.0, -1e-4, 1.0, 30.0, -np.inf], log_decay.shape)
                log_decay = np.where(chosen > 0, chosen * log_decay, chosen)
        ragged = {
            "reset": rng.random(rows) < 0.1,
            "lengths": rng.integers(0, self.time + 1, self.batch),
        }
        arrays = {
            "query": unit(),
            "key": key,
            "value": rng.normal(size=(*rows, self.heads, self.value)),
            "log_decay": log_decay,
            "erase": strength * key if self.erase else None,
            "h0": rng.normal(size=ends),
            "g": rng.normal(size=(*rows, self.heads, self.value)),
            "g_last": rng.normal(size=ends),
        }
        arrays = {
            name: None if x is None else rounded(x, _dtype(self, name))
            for name, x in arrays.items()
        }
        return arrays | (ragged if self.ragged else {})

    def converted(self, arrays: dict[str, Any]) -> dict[str, Any]:
        return {
            name: None if x is None else to_jax(x, _dtype(self, name))
            for name, x in arrays.items()
            if name not in ("reset", "lengths")
        }

    def expected(self, arrays: dict[str, Any]) -> tuple:
        """Those that are `None` are left out."""
        names = (*INPUTS, "h0")
        reference: Any = _reference
        results = []
        for row in np.ndindex(self.batch):
            values = [None if arrays[name] is None else arrays[name][row] for name in names]
            g, g_last = arrays["g"][row], arrays["g_last"][row]
            options: dict[str, Any] = {
                name: arrays[name][row] for name in ("reset", "lengths") if name in arrays
            } | {"reverse": self.reverse}
            results.append(
                (
                    *reference.linear_attention(*values, **options),
                    *reference.linear_attention_gradient(*values, g, g_last, **options),
                )
            )
        return tuple(
            np.stack(rows).reshape(*self.batch, *rows[0].shape)
            for rows in zip(*results, strict=True)
            if rows[0] is not None
        )


def _dtype(spec: AttentionArguments, name: str) -> str:
    return "float32" if name in ("log_decay", "h0", "g_last") else spec.dtype


ATTENTION_ARGUMENTS = (
    AttentionArguments(time=150, heads=4, groups=2, decay="head", erase=True, ragged=True),
    AttentionArguments(time=70, decay="channel", erase=True, ragged=True, reverse=True),
    AttentionArguments(time=130, heads=3, groups=1, key=16, value=4),
    AttentionArguments(time=100, decay="head", reverse=True, ragged=True, dtype="bfloat16"),
    AttentionArguments(batch=(2, 1), time=65, decay="channel", extreme=True, key=5),
    AttentionArguments(batch=(), time=1, erase=True, key=1, value=1),
)
"""All kinds of decays, with and without erasure, both directions, groups, odd sizes, dtypes."""

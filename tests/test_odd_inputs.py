"""Odd inputs to everything public: each is refused clearly, or gives the documented result.

Every case is a valid call. One argument at a time is replaced by each odd value of its kind: of a
wrong type, rank, size, dtype or structure, out of range, or not finite. An outcome is

- right: the value is documented as accepted, and the result is like that of the valid call,
- clear: a documented error of our own that names the argument or the class and what is expected,
- silent: a value that is not valid is accepted, or
- cryptic: an error from inside another library, or one that does not say what is wrong.

The last two are failures. Calls are traced and not compiled, which finds the same mistakes.
"""

import functools
import inspect
import linecache
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf, nan
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeAliasType, Union, get_args, get_origin

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnscale
import rnnscale_kernels
from rnnscale import (
    analysis,
    attention,
    cells,
    data,
    interop,
    layers,
    models,
    sharding,
    ssm,
    training,
)
from rnnscale._base import has_step
from rnnscale._checks import Count
from rnnscale.ssm import _base
from rnnscale.verify import CELLS, LAYERS, MODELS, NETWORKS, sample_inputs
from rnnscale_kernels import Planar

SOURCES = tuple(str(Path(module.__path__[0])) for module in (rnnscale, rnnscale_kernels))
KEY = jax.random.key(0)
ROWS, TIME = 2, 3

type Outcome = Literal["refused", "accepted", "either"]


class Odd(NamedTuple):
    """An odd value and what should come of it. `"either"`: a clear error, or an accepted value."""

    value: Any
    outcome: Outcome = "refused"


type Kind = Callable[[Any], list[Odd]]
"""The odd values to try in the place of a valid one."""


def refused(*values: Any) -> list[Odd]:
    return [Odd(value) for value in values]


def accepted(*values: Any) -> list[Odd]:
    return [Odd(value, "accepted") for value in values]


def either(*values: Any) -> list[Odd]:
    return [Odd(value, "either") for value in values]


def natural(valid: Any) -> list[Odd]:
    odd = refused(None, "3", 2.5, True, nan, inf, [3], 1j, -1)
    return odd if valid is None else odd + accepted(np.int64(valid))


def size(valid: Any) -> list[Odd]:
    return natural(valid) + refused(0)


def number(valid: Any) -> list[Odd]:
    odd = refused(None, "0.5", nan, inf, -inf, [0.5], 1j, True)
    return odd + accepted(np.float64(valid)) if isinstance(valid, float) else odd


def pair(valid: Any) -> list[Odd]:
    low, high = valid
    odd = refused(None, "ab", (low,), (low, high, high), (nan, high), (low, inf), (low, "1"), {})
    return odd + either([low, high])


def number_or_pair(valid: Any) -> list[Odd]:
    numbers = [each for each in number(valid) if each.value != [0.5]]
    return numbers + pair((valid, valid)) if isinstance(valid, float) else numbers


def flag(_: Any) -> list[Odd]:
    return refused(None, "yes", 1, 0.0, [True])


def choice(valid: Any) -> list[Odd]:
    return refused(None, "nonesuch", 3, True, [valid])


def text(_: Any) -> list[Odd]:
    return refused(None, 3, 2.5, True, ["a"])


def function(_: Any) -> list[Odd]:
    return refused(None, "tanh", 3, [jnp.tanh])


def init_key(_: Any) -> list[Odd]:
    wrong = np.zeros(2, np.float32), np.zeros(3, np.uint32), jax.random.split(KEY, 3)
    return refused(None, 0, 1.5, "key", [0, 1], *wrong) + accepted(np.array([0, 1], np.uint32))


def row_key(_: Any) -> list[Odd]:
    wrong = np.zeros(2, np.float32), jax.random.split(KEY, ROWS + 1)
    return refused(0, 1.5, "key", *wrong) + accepted(None, jax.random.split(KEY, ROWS))


def no_array(valid: Any) -> list[Odd]:
    return refused("x", object(), np.array([None])) + either(np.asarray(valid).tolist())


def features(valid: Any) -> list[Odd]:
    """For floating arrays whose last axis has a fixed size."""
    dtypes = valid.astype(np.int32), valid.astype(bool), valid.astype(np.complex64)
    sizes = valid[..., :-1], np.concatenate([valid, valid], -1), valid.ravel()[:1][0]
    low = valid.astype(np.float16), jnp.asarray(valid), valid.astype(jnp.bfloat16)
    return no_array(valid) + refused(None, 3.0, *dtypes, *sizes) + accepted(*low)


def sequences(valid: Any) -> list[Odd]:
    return features(valid) + refused(valid[0, 0])


def tokens(valid: Any) -> list[Odd]:
    wrong = valid.astype(np.float32), valid.astype(bool), valid.astype(np.complex64)
    return no_array(valid) + refused(None, 3.0, *wrong) + accepted(valid.astype(np.uint8))


def reset(valid: Any) -> list[Odd]:
    dtypes = valid.astype(np.int32), valid.astype(np.float32)
    shapes = valid[:, :-1], valid[0], valid[..., None], np.concatenate([valid, valid]), valid[0, 0]
    return no_array(valid) + refused(True, 0, "yes", *dtypes, *shapes) + accepted(None)


def lengths(valid: Any) -> list[Odd]:
    high = valid.astype(np.int64) + 2**32
    values = -valid, valid + TIME, high, high.tolist(), valid.astype(np.uint64) + 2**63
    dtypes = valid.astype(np.float32), valid > 1, valid.astype(np.complex64)
    shapes = valid[:1], valid[:, None], valid[None], np.concatenate([valid, valid]), valid[0], 2
    fine = valid.astype(np.uint8), valid.astype(np.int64), jnp.asarray(valid), None, 0 * valid
    odd = refused("x", object(), [3.0, 1.0], 2.5, *values, *dtypes, *shapes)
    return odd + accepted(*fine) + either(valid.tolist())


def intervals(valid: Any) -> list[Odd]:
    dtypes = valid.astype(np.int32), valid.astype(bool), valid.astype(np.complex64)
    shapes = valid[..., :-1], valid[..., None], np.concatenate([valid, valid]), valid[0]
    values = -valid, nan * valid
    return no_array(valid) + refused(1.0, *dtypes, *shapes, *values) + accepted(0 * valid, None)


def state(valid: Any) -> list[Odd]:
    return optional_state(valid) + refused(None)


def optional_state(valid: Any) -> list[Odd]:
    odd = refused("h", 3, object(), [], {}, (valid, valid), [valid])
    leaves, structure = jax.tree.flatten(valid)
    for i, leaf in enumerate(leaves):

        def with_leaf(leaf: Any, i: int = i) -> Any:
            return jax.tree.unflatten(structure, [*leaves[:i], leaf, *leaves[i + 1 :]])

        double = np.concatenate([leaf, leaf], -1)
        shapes = leaf[..., :-1], double, leaf[..., None], leaf[0], np.concatenate([leaf, leaf])
        dtypes = leaf.astype(bool), leaf.astype(np.complex64)
        odd += refused(*map(with_leaf, (None, "h", *shapes, *dtypes)))
        floating = np.issubdtype(leaf.dtype, np.floating)
        odd += refused(with_leaf(leaf.astype(np.int32 if floating else np.float32)))
        odd += accepted(with_leaf(leaf.astype(np.float16 if floating else np.int16)))
    return odd


def batch_shape(_: Any) -> list[Odd]:
    return refused(None, "2", 2.5, (-1,), (2.5,), ("2",), (None,), (True,)) + accepted((), (0,))


def dtype(_: Any) -> list[Odd]:
    return refused("float33", 3, object(), np.int32, bool, np.complex64) + accepted(
        np.float16, jnp.bfloat16, "float32"
    )


def module(valid: Any) -> list[Odd]:
    return refused(None, 3, "gru", object(), type(valid), [valid])


def modules(valid: Any) -> list[Odd]:
    return refused(None, 3, "gru", [], [None], valid[0], [type(valid[0])], {"a": valid[0]})


BY_NAME: dict[str, Kind] = {
    "key": init_key,
    "xs": sequences,
    "x": features,
    "tokens": tokens,
    "token": tokens,
    "state": state,
    "reset": reset,
    "lengths": lengths,
    "intervals": intervals,
    "interval": lambda valid: intervals(valid),
    "batch_shape": batch_shape,
    "dtype": dtype,
    "cell": module,
    "forward": module,
    "backward": module,
    "encoder": module,
    "layer": module,
    "parallel": lambda _: refused(3, "newton", True, object(), []),
    "seed": natural,
    "drawn": natural,
    "burn_in": natural,
}
BY_TYPE: dict[Any, Kind] = {
    bool: flag,
    Count: natural,
    int: size,
    float: number,
    str: text,
    Literal: choice,
}


def alternatives(annotation: Any) -> Iterator[Any]:
    """The kinds of things that an annotation allows."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if annotation in BY_TYPE:
        yield annotation
    elif isinstance(origin, TypeAliasType):
        yield from alternatives(origin.__value__[arguments] if arguments else origin.__value__)
    elif origin is Annotated:
        yield from alternatives(arguments[0])
    elif origin in (Union, UnionType):
        for each in arguments:
            yield from alternatives(each)
    else:
        yield annotation


def odd_values(name: str, annotation: Any, valid: Any, kinds: Mapping[str, Kind]) -> list[Odd]:
    types = list(alternatives(annotation))
    kind = kinds.get(name) or BY_NAME.get(name)
    if kind is None and {float, tuple} <= {get_origin(each) or each for each in types}:
        kind = number_or_pair
    for each in types:
        origin = get_origin(each) or each
        if kind is None and origin is tuple:
            kind = pair
        if kind is None and origin is Callable:
            kind = function
        kind = kind or BY_TYPE.get(origin)
    if kind is None:
        raise TypeError(f"no kind for {name}: {annotation}")
    found = kind(valid)
    if NoneType in types:
        found = [each for each in found if each.value is not None]
    return found


@dataclass(frozen=True)
class Call:
    """A function and arguments that are valid."""

    function: Callable[..., Any]
    given: dict[str, Any]
    traced: bool = True

    def shapes(self, **changed: Any) -> Any:
        """The result, with shapes and dtypes in the place of arrays, if arguments are changed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = self.given | changed
            if not self.traced:
                return self.function(**arguments)
            return eqx.filter_eval_shape(lambda: self.function(**arguments))

    @property
    def parts(self) -> set[str]:
        """The classes of the modules involved, of which an error may name one."""
        module = getattr(self.function, "__self__", self.function), self.given
        found: set[str] = set()

        def visit(each: Any) -> bool:
            if isinstance(each, eqx.Module):
                found.add(type(each).__name__)
            return False

        jax.tree.leaves(module, is_leaf=visit)
        return found

    @functools.cached_property
    def plain(self) -> Any:
        return self.shapes()


@dataclass(frozen=True)
class Case:
    """A valid call.

    - `name`: what an error may name instead of the argument: the class or the function.
    - `make`: returns the function and its arguments.
    - `kinds`: of arguments for which neither their name nor their type says it.
    - `more`: further values of an argument that are out of its range.
    - `traced`: whether the call can be traced. If not, only what it has to refuse is tried.
    """

    name: str
    make: Callable[[], tuple[Callable[..., Any], dict[str, Any]]]
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    more: Mapping[str, list[Odd]] = field(default_factory=dict)
    traced: bool = True

    def odd_inputs(self) -> Iterator[tuple["Call", str, Odd]]:
        """`(call, name, odd value)`, one for each odd input."""
        function, given = self.make()
        parameters = inspect.signature(function).parameters
        given = {name: value for name, value in given.items() if name in parameters}
        call = Call(function, given, self.traced)
        for name, each in parameters.items():
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                continue
            valid = given.get(name, None if each.default is each.empty else each.default)
            odd = odd_values(name, each.annotation, valid, self.kinds)
            if each.default is None:
                odd = [value for value in odd if value.value is not None]
            for value in [*odd, *self.more.get(name, [])]:
                if self.traced or value.outcome == "refused":
                    yield call, name, value


def complaint(case: Case, call: Call, name: str, odd: Odd) -> str | None:
    """What is wrong with the outcome of an odd input, or `None` if it is right or clear."""
    what = f"{case.name}: {name}={_short(odd.value)}"
    try:
        result = call.shapes(**{name: odd.value})
    except Exception as error:  # any that comes is judged
        if odd.outcome == "accepted":
            return f"{what} is refused: {type(error).__name__}: {_short(error)}"
        # What does not fit may be another argument, such as the `reset` of longer sequences.
        why = _why_cryptic(error, {case.name.split(".")[0], *call.given, name, *call.parts})
        return why and f"{what} is cryptic, {why}: {type(error).__name__}: {_short(error)}"
    if odd.outcome == "refused":
        return f"{what} is silent"
    same = odd.value is None or _described(result, name) == _described(call.plain, name)
    return None if same else f"{what} is silent, and changes the result"


def _described(result: Any, name: str) -> Any:
    """What an accepted value does not change: shapes, and for a state dtypes too."""
    # Leaves, since the static field of a dtype is a part of the structure.
    described = [getattr(x, "shape", ()) for x in jax.tree.leaves(result)]
    if name == "state":
        described = described, jax.tree.map(lambda x: str(getattr(x, "dtype", "")), result)
    return jax.tree.structure(result) if name == "batch_shape" else described


def _why_cryptic(error: Exception, names: set[str]) -> str | None:
    if not isinstance(error, ValueError | TypeError | NotImplementedError):
        return "of an undocumented type"
    if any(name in note for note in getattr(error, "__notes__", []) for name in names):
        return None  # raised by a function that was given, and we say which
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    assert frame is not None
    path, line = frame.tb_frame.f_code.co_filename, frame.tb_lineno
    if not path.startswith(SOURCES) or not linecache.getline(path, line).strip().startswith(
        "raise"
    ):
        return "not raised by us"
    if not any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in names):
        return f"names none of {sorted(names)}"
    if not re.search(r"\b(must|takes?|needs?|expected|at least|one of|give)\b", str(error)):
        return "does not say what is expected"
    return None


def _short(value: Any) -> str:
    """The value, with types and shapes in the place of arrays."""
    leaves, structure = jax.tree.flatten(value)
    if any(isinstance(each, np.ndarray | jax.Array) for each in leaves):
        texts = [f"{x.dtype}{x.shape}" if hasattr(x, "dtype") else repr(x) for x in leaves]
        value = texts[0] if value is leaves[0] else jax.tree.unflatten(structure, texts)
    return " ".join(repr(value).split())[:150]


def filled[T](build: Callable[..., T], *args: Any, **options: Any) -> T:
    """What `build` returns, with its arrays filled by NumPy: nothing is compiled."""
    random = np.random.default_rng(0)

    def fill(each: Any) -> Any:
        if not isinstance(each, jax.ShapeDtypeStruct):
            return each
        if np.issubdtype(each.dtype, np.floating):
            return jax.device_put(random.uniform(0.1, 0.9, each.shape).astype(each.dtype))
        return jax.device_put(np.ones(each.shape, each.dtype))

    return jax.tree.map(fill, eqx.filter_eval_shape(build, *args, **options))


def host(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def state_of(layer: Any, *batch: int) -> Any:
    return host(jax.eval_shape(lambda: layer.init_state(batch)))


def constructor(cls: Any, make: Callable[[], dict[str, Any]] | None = None, **given: Any) -> Case:
    """The case of a class, from the arguments that have no default or are `None` by default."""
    more = {name: values for name, values in given.pop("more", {}).items()}
    kinds = given.pop("kinds", {})
    if "key" in inspect.signature(cls).parameters:
        given["key"] = KEY
    return Case(cls.__name__, lambda: (cls, given | (make() if make else {})), kinds, more)


def cell() -> Any:
    return filled(cells.ElmanRNNCell, 3, 4, key=KEY)


def arrays(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 0.9, shape).astype(np.float32)


def _periods(_: Any) -> list[Odd]:
    return refused(None, "1248", 3, [], [0, 1], [-1, 1], [1.5, 1], ["a", "b"], [1, None], [True])


# The argument of every class that has one, and the odd values of those that have a range.
SIZES: dict[str, Any] = {"idim": 4, "hdim": 8}
CELL_CASES = [
    constructor(cells.AntiSymmetricRNNCell, **SIZES, more={"epsilon": refused(0.0, -1.0)}),
    constructor(cells.ChoGatedRecurrentUnitCell, **SIZES),
    constructor(
        cells.ClockWorkRNNCell,
        **SIZES,
        sizes=(2, 2, 2, 2),
        kinds={"periods": _periods, "sizes": _periods},
        more={"sizes": refused((8,), (2, 2, 2, 3))},
    ),
    constructor(
        cells.CoupledOscillatoryRNNCell,
        **SIZES,
        more={"dt": refused(0.0, -1.0), "gamma": refused(-1.0), "epsilon": refused(-1.0)},
    ),
    constructor(cells.ElmanRNNCell, **SIZES),
    constructor(cells.ExpRNNCell, **SIZES),
    constructor(cells.GatedAntiSymmetricRNNCell, **SIZES, more={"recurrent_std": refused(-1.0)}),
    constructor(cells.GatedLipschitzRNNCell, **SIZES, more={"beta": refused(-0.1, 1.1)}),
    constructor(cells.GatedRecurrentUnitCell, **SIZES),
    constructor(
        cells.HeterogeneousOscillatoryRNNCell,
        **SIZES,
        more={"dt": refused(0.0, -1.0), "gamma": refused((2.0, 1.0), (-1.0, 1.0))},
    ),
    constructor(cells.IndRNNCell, **SIZES, more={"recurrent_range": refused((1.0, 0.0))}),
    constructor(cells.LeakyElmanCell, **SIZES, more={"leak": refused(0.0, -0.5, 1.5)}),
    constructor(cells.LipschitzRNNCell, **SIZES, more={"epsilon": refused(0.0, -0.1)}),
    constructor(cells.LongShortTermMemoryCell, **SIZES),
    constructor(cells.LrcSSMCell, **SIZES, more={"dt": refused(0.0, -1.0)}),
    constructor(cells.MinGRUCell, **SIZES),
    constructor(cells.MinLSTMCell, **SIZES),
    constructor(cells.MinimalGatedUnitCell, **SIZES),
    constructor(cells.NonNormalRNNCell, **SIZES, more={"hdim": refused(3)}),
    constructor(
        cells.SLSTMCell,
        **SIZES,
        more={
            "heads": refused(7),
            "position": refused(-0.1, 1.5),
            "use_input_weights": refused(False),
        },
    ),
    constructor(cells.ParaGRUCell, **SIZES, more={"heads": refused(3, 8)}),
    constructor(cells.ParaLSTMCell, **SIZES, more={"heads": refused(3, 8)}),
    constructor(cells.RGLRUCell, idim=4, more={"blocks": refused(3)}),
    constructor(cells.RandomOscillatorsCell, **SIZES, more={"gamma": refused((2.0, 1.0))}),
    constructor(
        cells.UnICORNNCell, **SIZES, more={"dt": refused(0.0, -1.0), "alpha": refused(-1.0)}
    ),
    constructor(cells.UnitaryEvolutionRNNCell, **SIZES),
    constructor(cells.WilsonCowanCell, **SIZES, more={"rate": refused(0.0, -0.5, 1.5)}),
]

_S5_RANGES = {
    "state_dim": refused(7),
    "blocks": refused(3),
    "dt_min": refused(0.0, -1.0, 0.2),
    "dt_max": refused(0.0, -1.0, 1e-4),
    "step_rescale": refused(0.0, -1.0),
}


def _limit(valid: Any) -> list[Odd]:
    """A range that may have no upper end."""
    low, _ = valid
    return [each for each in pair((low, 0.5)) if each.value != (low, inf)]


SSM_CASES = [
    constructor(
        ssm.LRU,
        idim=3,
        state_dim=4,
        odim=5,
        more={
            "r_min": refused(-0.1, 1.0, 1.5),
            "r_max": refused(-0.1, 0.0, 1.5),
            "max_phase": refused(0.0, -1.0, 7.0),
        },
    ),
    constructor(
        ssm.S4D,
        idim=3,
        state_dim=8,
        more={name: _S5_RANGES[name] for name in ("state_dim", "dt_min", "dt_max")},
    ),
    constructor(ssm.S5, idim=3, state_dim=8, odim=5, more=_S5_RANGES),
    constructor(ssm.BidirectionalS5, idim=3, state_dim=8, odim=5, more=_S5_RANGES),
    constructor(ssm.LinOSS, idim=3, state_dim=4, odim=5),
    constructor(
        ssm.Mamba,
        idim=3,
        state_dim=2,
        odim=5,
        expand=2,
        conv_width=2,
        dt_rank=2,
        more={name: _S5_RANGES[name] for name in ("dt_min", "dt_max")},
    ),
    constructor(
        ssm.Mamba2,
        idim=4,
        state_dim=2,
        odim=5,
        head_dim=4,
        groups=2,
        norm_groups=2,
        expand=2,
        conv_width=2,
        kinds={"dt_limit": _limit},
        more={
            "head_dim": refused(3, 16),
            "groups": refused(3),
            "norm_groups": refused(3),
            "dt_limit": refused((0.1, 0.1), (-1.0, 1.0), (0.2, 0.1)),
            **{name: _S5_RANGES[name] for name in ("dt_min", "dt_max")},
        },
    ),
    constructor(
        ssm.DampedLinOSS,
        idim=3,
        state_dim=4,
        odim=5,
        more={
            "r_min": refused(0.0, -0.1, 1.5),
            "r_max": refused(0.0, 0.1, 1.5),
            "theta_min": refused(-0.1, 3.5),
            "theta_max": refused(-0.1, 3.5),
            "step_std": refused(-0.1),
        },
    ),
    constructor(
        attention.RWKV7,
        idim=4,
        heads=2,
        odim=3,
        key_dim=2,
        decay_rank=2,
        rate_rank=2,
        gate_rank=2,
    ),
    *(
        constructor(
            layer,
            idim=4,
            heads=2,
            odim=3,
            key_dim=2,
            value_dim=2,
            more={"conv_width": refused(0, 1), "beta_max": refused(0.0, -1.0, 2.5)},
        )
        for layer in (attention.DeltaNet, attention.GatedDeltaNet, attention.DeltaProduct)
    ),
    constructor(attention.LinearAttention, idim=4, heads=2, odim=3, key_dim=2, value_dim=2),
    constructor(
        attention.GatedLinearAttention,
        idim=4,
        heads=2,
        odim=3,
        key_dim=2,
        value_dim=2,
        rank=2,
        more={"temperature": refused(0.0, -1.0)},
    ),
    constructor(
        attention.UpProjectedMLSTM,
        idim=4,
        heads=2,
        odim=3,
        expand=2,
        block_size=2,
        conv_width=2,
        depth=2,
        more={"heads": refused(3), "block_size": refused(3), "conv_width": refused(1)},
    ),
    constructor(
        attention.MLSTM,
        idim=4,
        heads=2,
        odim=3,
        key_dim=2,
        value_dim=2,
        depth=2,
        more={"gate_cap": refused(0.0, -1.0), "epsilon": refused(-1.0)},
    ),
    constructor(
        attention.LocalAttention,
        idim=4,
        heads=2,
        window=3,
        odim=3,
        kv_heads=1,
        key_dim=4,
        more={
            "window": refused(1),
            "kv_heads": refused(3),
            "rotary": refused(-0.1, 0.3, 1.1),
            "rotary_base": refused(0.0),
        },
    ),
    Case("hippo_legs", lambda: (ssm.hippo_legs, {"state_dim": 4})),
    Case("hippo_normal", lambda: (ssm.hippo_normal, {"state_dim": 4})),
]


_INTERVALS = ("intervals", "interval")


def _network(name: str, build: Callable) -> list[Case]:
    """The call, the step and `init_state` of a layer or a model."""

    def inputs(layer: Any, *axes: int) -> np.ndarray:
        return np.array(sample_inputs(layer, axes, KEY))

    def call() -> tuple[Callable, dict[str, Any]]:
        layer = filled(build, KEY)
        return layer, {
            "xs": inputs(layer, ROWS, TIME),
            "tokens": inputs(layer, ROWS, TIME),
            "state": state_of(layer, ROWS),
            "reset": np.arange(ROWS * TIME).reshape(ROWS, TIME) % 2 == 1,
            "lengths": np.array([TIME, 1], np.int32),
            "intervals": None if regular else arrays(ROWS, TIME),
        }

    def step() -> tuple[Callable, dict[str, Any]]:
        layer = filled(build, KEY)
        x = inputs(layer, ROWS, 1)[:, 0]
        interval = None if regular else arrays(ROWS)
        given = {"x": x, "token": x, "state": state_of(layer, ROWS), "interval": interval}
        return layer.step, given

    kinds: dict[str, Kind] = {"key": row_key, "state": optional_state}
    layer = filled(build, KEY)
    parts = Call(layer, {}).parts
    regular = "S5" not in parts or "BidirectionalS5" in parts
    if regular:  # intervals are refused, whatever they are
        kinds |= {name: lambda _: refused(arrays(ROWS, TIME), "x", 1) for name in _INTERVALS}
    if np.issubdtype(inputs(layer, 1, 1).dtype, np.integer):
        kinds |= {"xs": tokens, "x": tokens}
    kind = type(layer).__name__
    cases = [Case(f"{kind}.call {name}", call, kinds)]
    if has_step(layer):
        cases.append(Case(f"{kind}.step {name}", step, kinds | {"state": state}))
    return [*cases, _initial(kind, name, build)]


def _initial(kind: str, name: str, build: Callable) -> Case:
    def make() -> tuple[Callable, dict[str, Any]]:
        return filled(build, KEY).init_state, {"batch_shape": (ROWS,), "dtype": np.float32}

    return Case(f"{kind}.init_state {name}".strip(), make)


def _cell(subject: Any) -> list[Case]:
    def call() -> tuple[Callable, dict[str, Any]]:
        cell = filled(subject.build, KEY)
        return cell, {"x": arrays(ROWS, cell.idim), "state": state_of(cell, ROWS)}

    kind = subject.name.split()[0]
    kinds = {"key": row_key}
    return [Case(f"{kind}.call", call, kinds), _initial(kind, "", subject.build)]


CALL_CASES = [
    *(case for subject in CELLS for case in _cell(subject)),
    *(case for name, build in [*LAYERS, *MODELS, *NETWORKS] for case in _network(name, build)),
]


def _encoder() -> Any:
    return layers.RNNEncoder(cell())


def _square_cell() -> Any:
    return filled(cells.ElmanRNNCell, 3, 3, key=KEY)


def _autoregressive() -> Any:
    encoder = layers.RNNEncoder(_square_cell())
    return filled(lambda key: layers.AutoregressiveRNN(encoder, key=key), KEY)


def _reservoir() -> Any:
    return filled(lambda key: layers.ReservoirComputer(_square_cell(), 3, key=key), KEY)


def _sequences() -> dict[str, Any]:
    return {
        "xs": arrays(ROWS, TIME, 3),
        "state": arrays(ROWS, 3),
        "reset": np.zeros((ROWS, TIME), bool),
        "lengths": np.array([TIME, 1], np.int32),
    }


def _tokens() -> np.ndarray:
    return np.zeros((ROWS, TIME), np.int32)


def _ends(_: Any) -> list[Odd]:
    """Odd senders and receivers of edges."""
    return refused(None, 3, "a", [0.5, 1], [0], [0, 7], [])


_DRAWING: dict[str, Kind] = {
    "key": lambda valid: [
        *refused(None),
        *(odd for odd in row_key(valid) if odd.value is not None),
    ],
    "temperature": lambda _: refused(None, "1", nan, inf, -1.0, True, [1.0], 1j),
}


LAYER_CASES = [
    constructor(layers.RNN, lambda: {"cell": cell()}, odim=2, chunk=2),
    constructor(layers.RNNEncoder, lambda: {"cell": cell()}, chunk=2),
    constructor(layers.BidirectionalRNN, lambda: {"forward": cell(), "backward": cell()}, odim=2),
    constructor(layers.BidirectionalRNNEncoder, lambda: {"forward": cell(), "backward": cell()}),
    constructor(
        layers.DeepRNN, lambda: {"cells": [cell()]}, odim=2, chunk=2, kinds={"cells": modules}
    ),
    constructor(
        layers.DeepBidirectionalRNN,
        lambda: {"cells": [(cell(), cell())]},
        odim=2,
        kinds={"cells": modules},
    ),
    constructor(
        layers.DeepRNNEncoder, lambda: {"encoders": [_encoder()]}, kinds={"encoders": modules}
    ),
    constructor(
        layers.AutoregressiveRNN,
        lambda: {"encoder": layers.RNNEncoder(filled(cells.ElmanRNNCell, 3, 3, key=KEY))},
    ),
    constructor(layers.ReservoirComputer, lambda: {"cell": cell()}, odim=2),
    constructor(layers.ReservoirClassifier, lambda: {"cell": cell()}, odim=2),
    constructor(layers.SharedModules, lambda: {"cell": cell()}, count=2),
    constructor(layers.StackedModules, lambda: {"cells": [cell()]}, kinds={"cells": modules}),
    constructor(
        layers.SLSTM,
        idim=4,
        heads=2,
        conv_width=3,
        position=0.5,
        more={"position": refused(-0.1, 1.5)},
    ),
    constructor(layers.CausalConv, idim=3),
    constructor(
        layers.GriffinRecurrence,
        idim=3,
        hdim=4,
        odim=2,
        more={"blocks": refused(3), "conv_width": refused(1)},
    ),
    constructor(layers.Linear, idim=3, odim=2),
    constructor(layers.Embedding, vocab=5, dim=2, more={"scale": refused(0.0, -1.0)}),
    constructor(layers.LayerNorm, dim=3, more={"epsilon": refused(-1.0)}),
    constructor(layers.RMSNorm, dim=3, more={"epsilon": refused(-1.0)}),
    constructor(layers.Dropout, rate=0.5, more={"rate": refused(-0.1, 1.0)}),
    constructor(
        layers.DenseMessages,
        mask=[[0, 1], [1, 0]],
        idim=3,
        odim=2,
        kinds={
            "mask": lambda _: refused(None, 3, "a", [[0, 2], [1, 0]], [[0, 1]], [0, 1]),
            "maps": lambda _: refused("a", 3, arrays(2, 2)),
        },
    ),
    constructor(
        layers.SparseMessages,
        senders=[0, 1],
        receivers=[1, 0],
        modules=2,
        idim=3,
        odim=2,
        kinds={
            "senders": _ends,
            "receivers": _ends,
            "maps": lambda _: refused(None, "a", 3, arrays(2, 2)),
        },
    ),
    Case(
        "ModularRNN",
        lambda: (
            layers.ModularRNN,
            {
                "groups": [layers.SharedModules(filled(cells.ElmanRNNCell, 4, 3, key=KEY), 2)],
                "messages": filled(layers.DenseMessages, [[0, 1], [1, 0]], 3, 2, key=KEY),
            },
        ),
        {"groups": modules, "messages": module},
    ),
    Case("RidgeSums.zeros", lambda: (layers.RidgeSums.zeros, {"features": 2, "targets": 1})),
    Case(
        "row_keys",
        lambda: (layers.row_keys, {"key": KEY, "batch_shape": (ROWS,)}),
        {"key": row_key, "batch_shape": lambda _: refused(None, "2", 2.5, (-1,), (2.5,))},
    ),
    Case(
        "over_time",
        lambda: (
            rnnscale.over_time,
            {
                "body": lambda carry, xs, start: (carry, xs),
                "carry": arrays(2),
                "xs": arrays(ROWS, TIME, 3),
                "steps": 2,
                "axis": 1,
            },
        ),
        {"carry": lambda _: [], "xs": lambda _: refused(None, [], 3.0)},
        {"axis": refused(7)},
    ),
    Case(
        "ElmanRNNCell.time_loop",
        lambda: (cells.time_loop, {"cell": _square_cell(), **_sequences()}),
        {"state": optional_state},
    ),
    Case(
        "ElmanRNNCell.certified_time_loop",
        lambda: (cells.certified_time_loop, {"cell": _square_cell(), **_sequences()}),
        {"state": optional_state},
    ),
    Case(
        "RNN.outputs",
        lambda: (
            filled(lambda key: layers.RNN(_square_cell(), 2, key=key), KEY).outputs,
            {"per_step": True, **_sequences()},
        ),
        {"state": optional_state, "key": row_key},
    ),
    Case(
        "AutoregressiveRNN.forecast",
        lambda: (_autoregressive().forecast, {"steps": 2, **_sequences()}),
        {"state": optional_state},
    ),
    Case(
        "AutoregressiveRNN.generate",
        lambda: (
            _autoregressive().generate,
            {"tokens": _tokens(), "steps": 2, "top_k": 2, "key": KEY, **_sequences()},
        ),
        {"state": optional_state} | _DRAWING,
    ),
    Case(
        "ReservoirComputer.forecast",
        lambda: (_reservoir().forecast, {"steps": 2, **_sequences()}),
        {"state": optional_state},
    ),
    Case(
        "Linear.call",
        lambda: (filled(layers.Linear, 3, 2, key=KEY), {"x": arrays(ROWS, 3)}),
    ),
    Case("LayerNorm.call", lambda: (filled(layers.LayerNorm, 3), {"x": arrays(ROWS, 3)})),
    Case("RMSNorm.call", lambda: (filled(layers.RMSNorm, 3), {"x": arrays(ROWS, 3)})),
    Case(
        "Embedding.call",
        lambda: (filled(layers.Embedding, 3, 2, key=KEY), {"tokens": _tokens()}),
    ),
    Case(
        "Dropout.call",
        lambda: (filled(layers.Dropout, 0.5), {"xs": arrays(ROWS, TIME, 3), "key": KEY}),
        {"key": row_key, "xs": lambda xs: refused(None, "x", 3, xs.astype(int), xs[0, 0])},
    ),
]


def _factory(_: Any) -> list[Odd]:
    wrong = [], ["lru"], [lambda: 3], [_layer_of, lambda key: ssm.LRU(2, 4, key=key)]
    return refused(None, "lru", 3, lambda: 3, lambda key: 3, *wrong)


def _layer_of(key: Any) -> Any:
    return ssm.LRU(3, 4, key=key)


_FACTORIES: dict[str, Kind] = {
    "make_layer": _factory,
    "make_mixer": function,
    "make_ffn": function,
    "make_norm": function,
    "make_head": function,
    "make_encoder": function,
}
MODEL_CASES = [
    Case(
        "generate",
        lambda: (
            models.generate,
            {
                "model": filled(
                    lambda key: models.LanguageModel(
                        5, make_layer=_layer_of, dim=3, depth=2, key=key
                    ),
                    KEY,
                ),
                "tokens": _tokens(),
                "steps": 2,
                "top_k": 2,
                "key": KEY,
            },
        ),
        {
            "model": lambda _: [],
            "state": lambda _: refused("a", 3),
            "lengths": lambda _: refused("a", [0, 1], [1, TIME + 1], [1], 2.5),
        }
        | _DRAWING,
    ),
    Case("GLU.call", lambda: (filled(models.GLU, 3, key=KEY), {"x": arrays(ROWS, 3)})),
    Case("HalfGLU.call", lambda: (filled(models.HalfGLU, 3, key=KEY), {"x": arrays(ROWS, 3)})),
    Case("FFN.call", lambda: (filled(models.FFN, 3, key=KEY), {"x": arrays(ROWS, 3)})),
    Case("GatedFFN.call", lambda: (filled(models.GatedFFN, 3, key=KEY), {"x": arrays(ROWS, 3)})),
    constructor(models.FFN, dim=3, hidden=4, odim=2),
    constructor(models.GatedFFN, dim=3, hidden=4, odim=2),
    constructor(models.GLU, dim=3, odim=2),
    constructor(models.HalfGLU, dim=3),
    constructor(models.Nonlinearity, dim=3),
    constructor(models.Block, lambda: {"layer": filled(_layer_of, KEY)}, kinds=_FACTORIES),
    constructor(models.BlockStack, make_layer=_layer_of, depth=2, kinds=_FACTORIES),
    constructor(
        models.SequenceClassifier,
        idim=2, classes=4, make_layer=_layer_of, dim=3, depth=2, chunk=2, kinds=_FACTORIES,
    ),
    constructor(
        models.LanguageModel,
        vocab=5, make_layer=_layer_of, dim=3, depth=2, kinds=_FACTORIES,
        more=dict.fromkeys(("embedding_scale", "logit_cap"), refused(0.0, -1.0)),
    ),
]  # fmt: skip


def paths(_: Any) -> list[Odd]:
    return refused(None, 3, 2.5, ["a"], object())


def list_of_paths(_: Any) -> list[Odd]:
    return refused(None, "a.bin", 3, [None], [3], {})


def mapping(_: Any) -> list[Odd]:
    return refused(None, 3, "a", [("inputs", 1)], object())


def names(_: Any) -> list[Odd]:
    return refused(None, 3, [None], [3], object())


def records(_: Any) -> list[Odd]:
    return refused(None, 3, object(), np.float32(2))


def sequence_source(_: Any) -> list[Odd]:
    return refused(None, 3, "abc", [1, 2], object(), data.ArraySource(inputs=np.zeros((2, 3))))


def mesh_of(_: Any) -> list[Odd]:
    return refused(None, 3, "data=2", {"data": 1}, object())


def model(_: Any) -> list[Odd]:
    return refused(3, "lru", object(), ssm.LRU, [1, 2])


def _untried(_: Any) -> list[Odd]:
    return []


def seed(valid: Any) -> list[Odd]:
    return natural(valid) + refused(2**32)


def whole(valid: Any) -> list[Odd]:
    return [each for each in natural(valid) if each.value != -1]


def planes(valid: Any) -> list[Odd]:
    """For the arguments of a kernel that have several planes, which have one dtype."""
    return [each for each in optional_state(valid) if each.outcome == "refused"]


def _complex(*shape: int) -> Planar:
    plane: Any = arrays(*shape)
    return Planar(plane, plane)


def _scan(complex: bool) -> dict[str, Any]:
    make = _complex if complex else arrays
    return {"a": make(4), "b": make(ROWS, TIME, 4), "h0": make(ROWS, 4)}


def _ssm(complex: bool) -> dict[str, Any]:
    make = _complex if complex else arrays
    maps = {"decay": make(4), "b": make(4, 3), "c": make(2, 4), "h0": make(ROWS, 4)}
    return {"u": arrays(ROWS, TIME, 3), **maps}


def _blocks() -> dict[str, Any]:
    def pair(x: Any) -> Any:
        return (x, x)

    return {
        "a": pair(pair(arrays(4))),
        "b": pair(arrays(ROWS, TIME, 4)),
        "h0": pair(arrays(ROWS, 4)),
    }


def _matrices() -> dict[str, Any]:
    return {"a": arrays(4, 4), "b": arrays(ROWS, TIME, 4), "h0": arrays(ROWS, 4)}


def _leaky(rate: Any, h: Any, x: Any) -> Any:
    return h + rate * (jnp.tanh(x) - h)


def _elman(before: Any, gates: Any, extras: Any) -> Any:
    return (jnp.tanh(gates),)


def _elementwise() -> dict[str, Any]:
    inputs, h0 = arrays(ROWS, TIME, 4), arrays(ROWS, 4)
    return {"step": _leaky, "weights": arrays(4), "inputs": inputs, "h0": h0, "fresh": h0}


def _persistent() -> dict[str, Any]:
    drive, h0 = arrays(ROWS, TIME, 1, 4), (arrays(ROWS, 4),)
    given = {"step": _elman, "matrix": arrays(1, 4, 4), "drive": drive, "h0": h0, "fresh": h0}
    return {**given, "extras": arrays(ROWS, TIME, 2, 4)}


def _attention() -> dict[str, Any]:
    heads = ROWS, TIME, 2
    wide, narrow = arrays(*heads, 3), arrays(ROWS, TIME, 1, 3)
    return {
        "query": narrow,
        "key": narrow,
        "value": arrays(*heads, 4),
        "log_decay": -jnp.abs(wide),
        "erase": wide,
        "h0": arrays(ROWS, 2, 3, 4),
    }


def _selective() -> dict[str, Any]:
    steps, maps, a = arrays(ROWS, TIME, 4), arrays(ROWS, TIME, 3), arrays(4, 3)
    return {"u": steps, "delta": steps, "a": -a, "b": maps, "c": maps, "h0": arrays(ROWS, 4, 3)}


def _weights(valid: Any) -> list[Odd]:
    return [each for each in features(valid) if np.ndim(each.value)]


def _step(_: Any) -> list[Odd]:
    return refused(None, 3, "tanh", [_leaky], lambda *_: 3)


def _kernel(function: Any, kind: str, valid: dict[str, Any]) -> Case:
    kinds: dict[str, Kind] = {
        name: _step if callable(value) else planes if isinstance(value, tuple) else features
        for name, value in valid.items()
    }
    if "step" in valid:
        # Weights may be any tree, also none or a number; states are float32 or float64.
        kinds |= {"h0": planes, "fresh": planes, "weights": _weights}
    kinds["implementation"] = lambda _: refused("fast", 3, True, ["sequential"])
    kinds["returned"] = lambda _: refused(3, "h", [1], [-1], [0.5], {0: 0})
    rows = {"reset": np.zeros((ROWS, TIME), bool), "lengths": np.array([TIME, 1], np.int32)}
    given = valid | rows
    return Case(f"{function.__name__}.{kind}", lambda: (function, given), kinds)


def _platform(_: Any) -> list[Odd]:
    return refused(None, 3, "gpu", ["cpu"], True)


KERNEL_CASES = [
    *(
        _kernel(function, "complex" if complex else "real", make(complex))
        for package in (rnnscale_kernels, sharding)
        for function, make in ((package.linear_scan, _scan), (package.diagonal_ssm, _ssm))
        for complex in (False, True)
    ),
    *(
        _kernel(function, kind, make())
        for package in (rnnscale_kernels, sharding)
        for function, kind, make in (
            (package.block_scan, "blocks", _blocks),
            (package.matrix_scan, "matrices", _matrices),
            (package.elementwise_scan, "units", _elementwise),
            (package.persistent_rnn, "units", _persistent),
            (package.linear_attention, "heads", _attention),
            (package.selective_scan, "channels", _selective),
        )
    ),
    Case(
        "implementations",
        lambda: (rnnscale_kernels.implementations, {"platform": "cpu"}),
        {"platform": _platform},
    ),
]


def _mesh() -> Any:
    return sharding.make_mesh(devices=jax.devices()[:1])


def host_case(function: Any, kinds: Mapping[str, Kind] | None = None, **given: Any) -> Case:
    """The case of a function that is not traced: only what it has to refuse is tried."""
    more = given.pop("more", {})
    return Case(
        function.__qualname__,
        lambda: (function, {k: v() if k in _LAZY else v for k, v in given.items()}),
        kinds or {},
        more,
        traced=False,
    )


_LAZY = {
    "cell",
    "mesh",
    "model",
    "optimiser",
    "sequences",
    "documents",
    "source",
    "records",
    "layer",
}
_MESH: dict[str, Kind] = {"mesh": mesh_of, "devices": lambda _: refused(3, "cpu", object())}


def _lru() -> Any:
    return filled(_layer_of, KEY)


SHARDING_CASES = [
    host_case(sharding.make_mesh, _MESH, more={"data": refused(7)}),
    host_case(
        sharding.sharded_init, {**_MESH, "init": function}, init=_layer_of, key=KEY, mesh=_mesh
    ),
    host_case(sharding.layouts, {**_MESH, "model": _untried}, model=_lru, mesh=_mesh),
    host_case(sharding.describe, {**_MESH, "model": _untried}, model=_lru, mesh=_mesh),
    host_case(sharding.shardings, {**_MESH, "tree": _untried}, tree={}, mesh=_mesh),
    host_case(
        sharding.batch_sharding, {**_MESH, "time_axis": whole}, mesh=_mesh, ndim=2, time_axis=1
    ),
    host_case(sharding.time_parts, time=3),
]


def _optimiser() -> Any:
    return optax.adam(1e-3)


def _loss(model: Any, batch: Any) -> Any:
    return jnp.zeros(())


def _totals(model: Any, batch: Any, key: Any, state: Any) -> Any:
    return state, {"loss": jnp.zeros(()), "count": jnp.ones(())}


_TRAINING: dict[str, Kind] = {
    "loss": lambda _: refused(None, "mse", 3, lambda model: 0),
    "optimiser": lambda _: refused(None, "adam", 3, object()),
    "model": model,
    "folder": paths,
    "path": paths,
    "watchdog": records,
    "signals": records,
    "best": records,
    "clock": records,
    "evaluate": function,
    "minutes": lambda valid: [each for each in number(valid) if each.value != inf],
}
TRAINING_CASES = [
    host_case(
        training.make_optimiser,
        {"model": _untried},
        model=_lru,
        learning_rate=0.1,
        recurrence_rate=0.1,
        weight_decay=0.1,
        warmup=1,
        steps=9,
        clip=1.0,
        more={
            "learning_rate": refused(0.0, -1.0),
            "recurrence_rate": refused(-1.0),
            "weight_decay": refused(-1.0),
            "warmup": refused(9),
            "clip": refused(0.0, -1.0),
        },
    ),
    host_case(
        training.make_schedule,
        {"name": choice},
        name="cosine",
        peak=0.1,
        warmup=1,
        steps=9,
        more={"peak": refused(0.0, -1.0), "warmup": refused(9)},
    ),
    host_case(training.make_train_step, _TRAINING, loss=_loss, optimiser=_optimiser),
    host_case(training.make_eval_step, _TRAINING, loss=_loss),
    host_case(training.in_chunks, _TRAINING, loss=_totals, steps=4),
    host_case(training.indrnn_constraint, limit=1.0, more={"limit": refused(0.0, -1.0)}),
    host_case(training.Evaluation, _TRAINING, evaluate=lambda state: {}, every=2),
    host_case(training.EarlyStopping, _TRAINING, best=training.Best("validation_loss"), patience=2),
    host_case(training.CpuBudget, _TRAINING, clock=training.Clock(), minutes=2.0),
    host_case(training.Certificates, every=2, dtype=np.float32, chunk=2),
    host_case(training.SkippedSteps),
    host_case(training.Heartbeat, _TRAINING, watchdog=None),
    host_case(training.StopOnSignal, _TRAINING, signals=None),
    host_case(training.MetricsFile, _TRAINING, path="metrics.jsonl"),
    host_case(training.Log, _TRAINING, tokens_per_step=2, metric="mse"),
    host_case(
        training.Checkpointer,
        _TRAINING,
        folder="x",
        minutes=1.0,
        more={"minutes": refused(0.0, -1.0)},
    ),
    host_case(training.saved_steps, _TRAINING, folder="x"),
    host_case(training.where_to_resume, _TRAINING, folder="x"),
    host_case(training.Carry.zeros, {**_TRAINING}, model=_lru, batch_size=2, dtype=np.float32),
    host_case(
        training.MovingAverage.start,
        {"model": _untried},
        model=_lru,
        decay=0.9,
        more={"decay": refused(0.0, 1.0, -1.0)},
    ),
    host_case(
        training.Best,
        {
            "better": choice,
            **dict.fromkeys(("figure", "step", "value", "failures", "last"), _untried),
        },
        figure="validation_loss",
        better="lower",
    ),
]


def _uneven() -> Any:
    return data.SequenceArrays({"inputs": [np.zeros((n, 2), np.float32) for n in (3, 2)]})


def _documents() -> Any:
    return data.SequenceArrays({"tokens": [np.zeros(n, np.int32) for n in (3, 2)]})


def _source() -> Any:
    return data.ArraySource(inputs=np.zeros((4, 3)), labels=np.zeros(4))


_DATA: dict[str, Kind] = {
    "sequences": sequence_source,
    "documents": sequence_source,
    "source": records,
    "records": records,
    "rows": records,
    "seed": seed,
    "bounds": lambda _: refused(None, 3, "abc", [], [0, 3], [3, 2], [2.5, 4], ["a"], [True, 4]),
    "change": function,
    "decode": function,
    "progress": function,
    "shardings": lambda _: refused(3, "data", [1]),
    "start": whole,
    "end": whole,
    "folder": paths,
    "path": paths,
    "shards": list_of_paths,
    "files": list_of_paths,
    "columns": names,
    "labels": names,
    "offsets": list_of_paths,
    "per_step": names,
    "notes": mapping,
    "over_time": mapping,
    "per_sequence": mapping,
    "workers": natural,
    "start_step": natural,
    "delimiter": text,
    "suffix": text,
    "left_out": lambda _: refused(None, 3, [1]),
    "skipped": names,
    "dtype": lambda _: refused("float33", object()),
}
DATA_CASES = [
    host_case(data.bucket, _DATA, sequences=_uneven, bounds=[2, 3], batch_size=1, seed=0),
    host_case(data.lanes, _DATA, sequences=_uneven, batch_size=1, steps=2, seed=0),
    host_case(data.lanes_once, _DATA, sequences=_uneven, batch_size=1, steps=2),
    host_case(data.next_token, _DATA, documents=_documents, start=1, end=1),
    host_case(data.augment, _DATA, source=_source, change=lambda record, random: record, seed=0),
    host_case(data.repeat, _DATA, source=_source),
    host_case(data.shuffle, _DATA, source=_source, seed=0),
    host_case(data.pack, _DATA, sequences=_uneven, steps=3),
    host_case(data.write_packed, _DATA, sequences=_uneven, folder="x", steps=3, rows_per_shard=2),
    host_case(data.write_rows, _DATA, rows=None, folder="x", rows_per_shard=2),
    host_case(data.PaddedSource, _DATA, source=_source, multiple_of=2, per_step=("inputs",)),
    host_case(data.pad, _DATA, sequences=_uneven, steps=3),
    host_case(data.batches, _DATA, source=_source, batch_size=2, seed=0),
    host_case(data.evaluation_batches, _DATA, source=_source, batch_size=2),
    host_case(data.stream, _DATA, records=_source, batch_size=2),
    host_case(
        data.window, _DATA, sequences=_uneven, steps=2, stride=1, more={"stride": refused(3)}
    ),
    host_case(data.SequenceFiles, {**_DATA, "offsets": paths}, over_time={"inputs": "x.npy"}),
    host_case(data.ArrayRecordFiles, _DATA, shards=["x"], decode=lambda content: {}),
    host_case(data.SequenceArrays, _DATA, over_time={"inputs": [np.zeros((3, 2))]}),
    host_case(data.CsvSeries, _DATA, folder="x"),
    host_case(data.ByteFiles, _DATA, folder="x"),
    host_case(data.TextFiles, _DATA, folder="x"),
    host_case(data.files_under, _DATA, folder="x"),
    host_case(data.PackedSource, _DATA, folder="x"),
    host_case(data.ParquetRows, _DATA, files=["x"]),
    host_case(data.ParquetSequences, _DATA, files=["x"]),
    host_case(data.open_npy, _DATA, path="x"),
    host_case(data.open_npz, _DATA, path="x"),
    host_case(data.open_parquet, _DATA, path="x"),
    host_case(data.read_ts, _DATA, path="x"),
    host_case(data.parse_ts, _DATA, path="x"),
    host_case(data.TokenShards, _DATA, shards=["x"], end=1),
    host_case(data.element_spec, _DATA, source=_source),
]

_ANALYSIS: dict[str, Kind] = {
    "layer": module,
    "xs": lambda valid: [odd for odd in sequences(valid) if odd.outcome == "refused"],
    "x": lambda valid: [odd for odd in features(valid) if odd.outcome == "refused"],
    "state": lambda valid: [odd for odd in optional_state(valid) if odd.outcome == "refused"],
    "cell": module,
    "key": lambda valid: [odd for odd in init_key(valid) if odd.outcome == "refused"],
    "axes": _untried,
    "newton": lambda _: refused("dense", 3, True, object()),
    "device": lambda _: refused("h10", 3, None, object()),
    **{name: mapping for name in ("values", "norms", "exponents", "steps")},
}
_STEP = {"x": arrays(3)}
_CALL = {"xs": arrays(ROWS, TIME, 3)}
ANALYSIS_CASES = [
    host_case(analysis.eigenvalues, _ANALYSIS, layer=_encoder, **_STEP, state=arrays(4)),
    host_case(analysis.timescales, _ANALYSIS, layer=_encoder, **_STEP, state=arrays(4)),
    host_case(analysis.continuous_eigenvalues, _ANALYSIS, layer=_lru),
    host_case(
        analysis.gradient_norms, _ANALYSIS, layer=_encoder, **_CALL, state=arrays(ROWS, 4), key=KEY
    ),
    host_case(
        analysis.state_gradient_norms,
        _ANALYSIS,
        layer=_encoder,
        **_CALL,
        state=arrays(ROWS, 4),
        key=KEY,
    ),
    host_case(
        analysis.lyapunov_spectrum,
        _ANALYSIS,
        layer=_encoder,
        **_CALL,
        state=arrays(ROWS, 4),
        count=2,
        more={"count": refused(5), "burn_in": refused(TIME)},
    ),
    host_case(
        analysis.parallelisable,
        _ANALYSIS,
        cell=cell,
        **_CALL,
        state=arrays(ROWS, 4),
        newton=cells.Newton(),
        device="h100",
    ),
    host_case(analysis.recurrent_matrix, _ANALYSIS, cell=cell),
    host_case(analysis.plot_eigenvalues, _ANALYSIS, axes=None, values={}),
    host_case(analysis.plot_gradient_norms, _ANALYSIS, axes=None, norms={}),
    host_case(analysis.plot_lyapunov, _ANALYSIS, axes=None, exponents={}),
    host_case(analysis.plot_timescales, _ANALYSIS, axes=None, steps={}, seq_len=2),
]

_INTEROP: dict[str, Kind] = {
    "state_dict": mapping,
    "params": mapping,
    "variables": mapping,
    "prefix": text,
    "model": model,
    "batch_shape": lambda _: refused(None, 3, [2.5], [None], [-1]),
    "platforms": lambda _: refused(None, 3, ["gpu"], [3], "cpu"),
    "dtype": lambda _: refused("float33", object(), 3),
    "file": lambda _: refused(None, 3, "x", b"x", ["x"]),
    "dt": lambda _: refused(None, 0.0, -1.0, "1", [], [0.0]),
    "folder": lambda _: refused(None, 3, b"x", ["x"], "", "nowhere"),
}
INTEROP_CASES = [
    *(
        host_case(function, _INTEROP, state_dict={})
        for function in (
            interop.lstm_from_torch,
            interop.gru_from_torch,
            interop.elman_from_torch,
            interop.lstm_cell_from_torch,
            interop.gru_cell_from_torch,
            interop.elman_cell_from_torch,
            interop.s4d_from_state_spaces,
            interop.s4d_mixer_from_state_spaces,
        )
    ),
    host_case(interop.s5_from_lindermanlab, _INTEROP, params={}),
    host_case(interop.s5_layers_from_lindermanlab, _INTEROP, params={}),
    host_case(interop.s5_classifier_from_lindermanlab, _INTEROP, variables={}),
    host_case(interop.linoss_from_rusch, _INTEROP, params={}),
    host_case(interop.damped_linoss_from_boyer, _INTEROP, params={}),
    host_case(interop.lru_from_minimal, _INTEROP, params={}),
    host_case(interop.lru_layers_from_minimal, _INTEROP, params={}),
    host_case(interop.lru_classifier_from_minimal, _INTEROP, variables={}),
    host_case(interop.lrcssm_cell_from_farsang, _INTEROP, params={}),
    host_case(interop.unicornn_from_rusch, _INTEROP, state_dict={}, dt=0.1, alpha=0.0),
    host_case(interop.export_step, _INTEROP, model=_lru),
    host_case(interop.load_step, _INTEROP, file=b""),
    host_case(interop.load_transformers, _INTEROP, folder="nowhere"),
]


_OTHER: dict[str, Kind] = {
    "cell": module,
    "step": function,
    "keys": lambda _: refused(None, 3, "key", arrays(2)),
    "logits": lambda _: refused(None, 3, "x", np.zeros((2, 3), int)),
    "temperature": lambda _: refused(None, "1", nan, inf, -1.0, [1.0], True),
    "matrix": lambda _: refused(None, "x", 3, arrays(2, 3), arrays(2)),
    **dict.fromkeys(("state", "xs", "reset", "lengths"), _untried),
}
OTHER_CASES = [
    host_case(cells.time_loop, _OTHER, cell=cell, xs=arrays(ROWS, TIME, 3)),
    host_case(cells.over_seq, _OTHER, cell=cell),
    host_case(cells.certified_time_loop, _OTHER, cell=cell, xs=arrays(ROWS, TIME, 3)),
    host_case(cells.Newton),
    host_case(layers.as_reservoir, _OTHER, cell=cell, spectral_radius=0.9, key=KEY),
    host_case(layers.spectral_radius, _OTHER, matrix=arrays(3, 3)),
    host_case(
        layers.draw_tokens,
        _OTHER,
        step=lambda x, state: (state, x),
        state=(),
        logits=arrays(2, 5),
        steps=2,
        top_k=2,
        keys=jax.random.split(KEY, 2),
        more={"top_k": refused(6)},
    ),
    host_case(
        training.Checkpoints,
        {
            "checkpointer": records,
            "meta": function,
            "watchdog": _untried,
            "best": lambda _: refused(3, "x", object()),
        },
        checkpointer=None,
    ),
]


CASES = [
    *CELL_CASES,
    *SSM_CASES,
    *CALL_CASES,
    *LAYER_CASES,
    *MODEL_CASES,
    *KERNEL_CASES,
    *SHARDING_CASES,
    *TRAINING_CASES,
    *DATA_CASES,
    *ANALYSIS_CASES,
    *INTEROP_CASES,
    *OTHER_CASES,
]


def _family(case: Case) -> str:
    return case.name.split(".")[0]


@pytest.mark.parametrize("family", sorted({_family(case) for case in CASES}))
def test_odd_inputs_are_refused_clearly_or_right(family: str) -> None:
    complaints = complaints_about(case for case in CASES if _family(case) == family)
    assert not complaints, "\n".join(complaints)


def complaints_about(cases: Iterable[Case]) -> list[str]:
    return [
        found
        for case in cases
        for call, name, odd in case.odd_inputs()
        if (found := complaint(case, call, name, odd))
    ]


def test_there_are_thousands_of_odd_inputs() -> None:
    count = sum(1 for case in CASES for _ in case.odd_inputs())
    print(f"{count} odd inputs in {len(CASES)} calls")
    assert count >= 9000


def test_a_check_that_is_missing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check of the state, a step of LRU takes states of other shapes and dtypes."""
    step = [case for case in CASES if case.name == "LRU.step LRU"]
    assert not complaints_about(step)
    monkeypatch.setattr(_base, "check_step", lambda layer, x, state, key=None: state)
    found = complaints_about(step)
    assert any("silent" in each for each in found) and any("cryptic" in each for each in found)


@pytest.mark.parametrize(
    ("name", "build"), [*LAYERS, *MODELS, *NETWORKS], ids=lambda each: str(each)[:20]
)
def test_batches_and_sequences_may_be_empty(name: str, build: Any) -> None:
    layer = filled(build, KEY)
    for axes in ((0, TIME), (ROWS, 0), (0, 0), (0,)):
        xs = sample_inputs(layer, axes, KEY)
        state, ys = jax.eval_shape(layer, xs)
        if isinstance(layer, layers.RecurrentNetwork):
            state, ys = ys, state
        else:
            assert jax.tree.map(jnp.shape, state) == jax.tree.map(
                jnp.shape, state_of(layer, *axes[:-1])
            )
        assert ys.shape[: len(axes) - 1] == axes[:-1], (name, axes)
        if jnp.issubdtype(xs.dtype, jnp.floating):
            jax.eval_shape(layer, xs.astype(jnp.bfloat16))
    # What runs is chosen when a program is lowered.
    trained, fixed = eqx.partition(layer, eqx.is_inexact_array)
    xs = sample_inputs(layer, (0, TIME), KEY)

    def total(trained: Any) -> Any:
        return sum(map(jnp.sum, jax.tree.leaves(eqx.combine(trained, fixed)(xs))))

    jax.jit(jax.grad(total, allow_int=True)).lower(trained)


ABSTRACT = """
    Affine AffineInputCell Cell LinearCell Encoder RecurrentNetwork Reservoir CausalLayer
    SequenceLayer SequenceModel Stepwise TakesIntervals DiagonalSSM OscillatorySSM AbstractSequences
    SequenceSource Source SpecifiedSource Callback
"""
MADE_BY_THE_LIBRARY = """
    Layout Specs CanonicalOp OpArguments Operation RecurrentOp SequentialOp Planar ArraySpec
    ShardInfo StoredArray UnchangedFile Batches FinishedStep Clock TrainState LayerWithInputs Panel
    Report ExportedStep ErfGLU FrozenBatchNorm HalfGLU2 S5Options OscillatorState MambaState
    Mamba2State Certificate Table Parallelisable ParallelMethod TimeAxis
"""
# Parts of implementations: their callers have checked what they are given.
INNER = """
    affine call_model check_cell compute_weights identity linear check_reset checked_lengths
    product time_loop_by layer_norm rms_norm
    adjoint fold_keys local_platform vary_alike zero_padding activation_spec
    automatic_axes check_halo constrain differentiable_on_mesh from_neighbour
    gathered join_time mesh_axes parameter_spec row_spec shift split_time take_step unit_specs
    arrays_over_time max_plus_scan record_spec parse_time
"""
# Odd inputs of these are in the tests of their own packages, or they take anything.
ELSEWHERE = """
    ArrayFiles ArraySource Identity ProgressBar TensorBoard TextSample TransformersFolder WandB
    certificates cross_entropy dynamics_panels evaluate figure_class fit has_step parameter
    parallel_tables recurrent_layers restore_part ridge_sums squared_error trainable
"""


def test_everything_public_is_tried() -> None:
    tried = {_family(case) for case in CASES}
    left_out = set(f"{ABSTRACT} {MADE_BY_THE_LIBRARY} {INNER} {ELSEWHERE}".split())
    packages = (
        cells,
        ssm,
        layers,
        models,
        rnnscale_kernels,
        sharding,
        training,
        data,
        analysis,
        interop,
    )
    public = {
        getattr(package, name).__name__
        for package in (rnnscale, *packages)
        for name in dir(package)
        if not name.startswith("_") and callable(getattr(package, name))
    }
    assert public - tried == left_out

"""`export_step`: one step of a model as a file."""

import importlib.util
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import DTypeLike

from rnnscale._base import Stepwise
from rnnscale._checks import check_arguments
from rnnscale._errors import MissingPackageError, UserError
from rnnscale.interop._fold import with_constants_folded
from rnnscale.interop._stepwise import reads_tokens, stepwise

# An alias, so that `check_arguments` does not take it for its parts.
type _DType = DTypeLike

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FORMAT = 1

# In bytes: flatbuffers, the format of jax.export, has 32-bit offsets.
_MOST_BYTES = 2**31 - 1


@check_arguments
def export_step(
    model: eqx.Module,
    *,
    batch_shape: Sequence[int | str] = ("batch",),
    platforms: Sequence[str] = ("cpu",),
    dtype: _DType | None = None,
) -> bytes:
    """Export one step of a causal layer or model as a file: its program and its weights.

    The weights are part of the program, so the file is all that a deployment needs, and whatever
    depends on weights only is computed here, once. `load_step` reads the file; `rnnscale.interop`
    describes its format.

    The step returns what `model.step` returns in inference, `(state, y)`. A model without a `step`
    gives at each step what it would give for a sequence that ends there: a `SequenceClassifier` the
    logits (of the mean up to there, for `pool="mean"`), an `RNN` the readout.

    **Arguments:**

    - `model`: a causal layer, a `LanguageModel`, an `AutoregressiveRNN`, a causal
        `SequenceClassifier`, an `RNN` or `DeepRNN`, or any other causal `Stepwise`.
    - `batch_shape`: the leading axes of the input. A name stands for any size, and equal names for
        equal sizes; `()` is a single sequence.
    - `platforms`: where the file can run, some of `"cpu"`, `"cuda"`, `"rocm"` and `"tpu"`. None of
        them has to be present here.
    - `dtype`: the dtype of the input, an integer one for tokens. By default float32, or int32 if
        the model reads only tokens.

    **Returns:** the contents of the file.

    **Raises:** `TypeError` if `model` has no step; `ImportError` without flatbuffers; `ValueError`
    if the model is not causal, an axis or a platform is invalid, an operation can't be exported to
    a platform, the weights take more than 2 GB, or it is called inside `jax.set_mesh`.
    """
    _check_call(platforms)
    module = stepwise(model)
    dtype = _input_dtype(model, dtype)
    features = () if jnp.issubdtype(dtype, jnp.integer) else (cast(Any, model).idim,)
    x = jax.ShapeDtypeStruct((*_batch_axes(batch_shape), *features), dtype)
    step, init_state = _flat_functions(_on_one_device(module), dtype)
    state = jax.eval_shape(init_state, x)
    _, y = jax.eval_shape(step, x, state)
    try:
        with _no_tracebacks():
            programs = {
                "init_state": _program(init_state, platforms, x),
                "step": _program(with_constants_folded(step, x, state), platforms, x, state),
            }
    except NotImplementedError as error:  # a platform has no rule for an operation
        raise UserError(
            f"export_step: {type(model).__name__} has no step for {', '.join(platforms)}: {error}"
        ) from error
    about = {
        "format": FORMAT,
        "model": type(model).__name__,
        "input": _described(x),
        "output": _described(y),
        "state": [_described(each) for each in state],
        "platforms": list(platforms),
        "jax": jax.__version__,
        "rnnscale": metadata.version("rnnscale"),
    }
    return _archive({"about.json": json.dumps(about, indent=2).encode(), **programs})


def check_flatbuffers() -> None:
    """Raises `MissingPackageError` without flatbuffers, which `jax.export` needs."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise MissingPackageError(
            "jax.export writes and reads with flatbuffers, which isn't installed: install "
            "rnnscale[export], or flatbuffers"
        )


def _check_call(platforms: Sequence[str]) -> None:
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(PLATFORMS):
        raise UserError(
            f"export_step: platforms must be some of {', '.join(PLATFORMS)}; got {platforms!r}"
        )
    if not jax.sharding.get_abstract_mesh().empty:
        raise UserError(
            "export_step: a step is exported for one device, and inside jax.set_mesh it would be "
            "laid out on that mesh; call it outside"
        )
    check_flatbuffers()


def _input_dtype(model: Any, dtype: DTypeLike | None) -> jnp.dtype:
    tokens = reads_tokens(model)
    dtype = jnp.dtype((jnp.int32 if tokens else jnp.float32) if dtype is None else dtype)
    if tokens and not jnp.issubdtype(dtype, jnp.integer):
        raise UserError(
            f"export_step: {type(model).__name__} reads tokens, so dtype must be an integer one; "
            f"got {dtype}"
        )
    return dtype


def _flat_functions(
    module: Stepwise, dtype: jnp.dtype
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`step` and `init_state` of a module, for states that are tuples of arrays. The second takes
    an input, from which it reads the batch axes only."""
    tokens = jnp.issubdtype(dtype, jnp.integer)
    # A model that reads tokens has its own compute dtype.
    state_dtype = None if tokens else dtype
    # It is the same for any batch.
    structure = jax.tree.structure(jax.eval_shape(lambda: module.init_state((), state_dtype)))

    def step(x: Any, state: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], jax.Array]:
        after, y = module.step(x, jax.tree.unflatten(structure, state))
        return tuple(jax.tree.leaves(after)), y

    def init_state(x: Any) -> tuple[jax.Array, ...]:
        batch_shape = x.shape if tokens else x.shape[:-1]
        return tuple(jax.tree.leaves(module.init_state(batch_shape, state_dtype)))

    return step, init_state


def _batch_axes(batch_shape: Sequence[int | str]) -> tuple[Any, ...]:
    for axis in batch_shape:
        named = isinstance(axis, str) and axis.isidentifier()
        if isinstance(batch_shape, str) or not (named or (isinstance(axis, int) and axis >= 1)):
            raise UserError(
                "export_step: batch_shape must be sizes of at least 1 and names, such as (8,) or "
                f'("batch",); got {batch_shape!r}'
            )
    return tuple(export.symbolic_shape(", ".join(map(str, batch_shape)))) if batch_shape else ()


def _on_one_device(module: Any) -> Any:
    """The module with its arrays on the default device. They may be split over a mesh."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(module, eqx.is_array)))
    if size > _MOST_BYTES:
        raise UserError(
            f"export_step: the weights take {size / 1e9:.1f} GB, and a file of jax.export holds "
            "at most 2.1 GB"
        )
    return jax.tree.map(
        lambda leaf: jnp.asarray(jax.device_get(leaf)) if eqx.is_array(leaf) else leaf, module
    )


@contextmanager
def _no_tracebacks() -> Iterator[None]:
    """Leave the names of source files and lines out of the programs made inside. They depend on
    the machine and the caller, and the same model must give the same file everywhere."""
    name = "jax_traceback_in_locations_limit"
    before = jax.config.values[name]
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _program(function: Any, platforms: Sequence[str], *specs: Any) -> bytes:
    return bytes(export.export(jax.jit(function), platforms=platforms)(*specs).serialize())


def _described(spec: jax.ShapeDtypeStruct) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else str(axis) for axis in spec.shape]
    return {"shape": shape, "dtype": str(spec.dtype)}


def _archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            # Without a date, so that the same model gives the same file.
            file.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()

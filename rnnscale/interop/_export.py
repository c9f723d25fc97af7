"""One step, written."""

import importlib.util
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import DTypeLike

from rnnscale._errors import MissingPackageError, UserError
from rnnscale.interop._fold import folded
from rnnscale.interop._stepwise import reads_tokens, stepwise

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FORMAT = 1

# flatbuffers, in which jax.export writes, has 32-bit offsets.
_LARGEST = 2**31 - 1


def export_step(
    model: eqx.Module,
    *,
    batch_shape: Sequence[int | str] = ("batch",),
    platforms: Sequence[str] = ("cpu",),
    dtype: DTypeLike | None = None,
) -> bytes:
    """One step of a causal layer or model as a file: its program and its weights.

    The weights are part of the program, so that a file is all that there is to deploy, and what
    depends on them only is computed here, once. `rnnscale.interop` says how the file is read, and
    `load_step` reads it.

    What a step gives is what `model.step` gives: `(state, y)`, in inference. Models without a
    `step` give at each one what they would for a sequence that ends there: a `SequenceClassifier`
    the logits (of the mean up to now, for `pool="mean"`), an `RNN` the readout.

    **Arguments:**

    - `model`: a causal layer, a `LanguageModel`, an `AutoregressiveRNN`, a causal
        `SequenceClassifier`, an `RNN` or `DeepRNN`, or any module with `step` and `init_state`
        that take and give what a `CausalLayer`'s do.
    - `batch_shape`: the leading axes of the input. A name stands for any size, and equal names for
        equal ones; `()` is one sequence.
    - `platforms`: what it can run on, of `"cpu"`, `"cuda"`, `"rocm"` and `"tpu"`. None of them has
        to be here.
    - `dtype`: of the input; integer for tokens. By default float32, or int32 for a model that
        reads tokens only.

    **Returns:** the file.

    **Raises:** `TypeError` where `model` has no step; `ValueError` where it isn't causal, an axis
    or a platform is none, an operation of it can't be written for a platform, its weights are above
    2 GB, or inside `jax.set_mesh`; `ImportError` without flatbuffers.
    """
    _check(platforms)
    module: Any = stepwise(model)
    tokens = reads_tokens(model)
    dtype = jnp.dtype((jnp.int32 if tokens else jnp.float32) if dtype is None else dtype)
    if tokens and not jnp.issubdtype(dtype, jnp.integer):
        raise UserError(
            f"export_step: {type(model).__name__} reads tokens, so dtype must be an integer one; "
            f"got {dtype}"
        )
    tokens = jnp.issubdtype(dtype, jnp.integer)
    module = _on_one_device(module)
    axes = (*_axes(batch_shape), *(() if tokens else (cast(Any, model).idim,)))
    x = jax.ShapeDtypeStruct(axes, dtype)
    # A model of tokens has a compute dtype of its own.
    state_dtype = None if tokens else dtype

    def init_state(x: Any) -> tuple[jax.Array, ...]:
        batch = x.shape if tokens else x.shape[:-1]
        return tuple(jax.tree.leaves(module.init_state(batch, state_dtype)))

    # Of any batch: the structure is the same.
    structure = jax.tree.structure(jax.eval_shape(lambda: module.init_state((), state_dtype)))

    def step(x: Any, state: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], jax.Array]:
        after, y = module.step(x, jax.tree.unflatten(structure, state))
        return tuple(jax.tree.leaves(after)), y

    state = jax.eval_shape(init_state, x)
    try:
        with _no_tracebacks():
            programs = {
                "init_state": _program(init_state, platforms, x),
                "step": _program(folded(step, x, state), platforms, x, state),
            }
    except NotImplementedError as error:  # where a platform has no rule for an operation
        raise UserError(
            f"export_step: {type(model).__name__} has no step for {', '.join(platforms)}: {error}"
        ) from error
    (_, y) = jax.eval_shape(step, x, state)
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
    """Raises unless there is what `jax.export` writes and reads with."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise MissingPackageError(
            "jax.export writes and reads with flatbuffers, which isn't installed: install "
            "rnnscale[export], or flatbuffers"
        )


def _check(platforms: Sequence[str]) -> None:
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


def _axes(batch_shape: Sequence[int | str]) -> tuple[Any, ...]:
    for axis in batch_shape:
        named = isinstance(axis, str) and axis.isidentifier()
        if isinstance(batch_shape, str) or not (named or (isinstance(axis, int) and axis >= 1)):
            raise UserError(
                "export_step: batch_shape must be sizes of at least 1 and names, such as (8,) or "
                f'("batch",); got {batch_shape!r}'
            )
    return tuple(export.symbolic_shape(", ".join(map(str, batch_shape)))) if batch_shape else ()


def _on_one_device(module: Any) -> Any:
    """The module with its arrays whole, on the default device: they may lie on a mesh."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(module, eqx.is_array)))
    if size > _LARGEST:
        raise UserError(
            f"export_step: the weights take {size / 1e9:.1f} GB, and a file of jax.export holds "
            "at most 2.1 GB"
        )
    return jax.tree.map(
        lambda leaf: jnp.asarray(jax.device_get(leaf)) if eqx.is_array(leaf) else leaf, module
    )


@contextmanager
def _no_tracebacks() -> Iterator[None]:
    """Programs made inside don't hold the files and lines that they come from: those are of this
    machine and of the caller, so the same model would give another file elsewhere."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
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
            # Of no date, so that the same model gives the same file.
            file.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()

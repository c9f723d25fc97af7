"""Models of flax that are built as those of the S5 and LRU papers: a linear encoder, blocks of
norm, layer and gate, pooling, a linear decoder."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from rnnscale._base import SequenceLayer
from rnnscale._errors import UserError
from rnnscale.interop._arrays import check_mapping, filled, read_arrays
from rnnscale.interop._frozen_batch_norm import FrozenBatchNorm
from rnnscale.layers import LayerNorm, Linear
from rnnscale.models import Block, Identity, SequenceClassifier

type Params = Mapping[str, Any]
type Pool = Any  # as of SequenceClassifier, which checks it

# flax has another one for LayerNorm, which is ours.
_BATCH_NORM_EPSILON = 1e-5


def read_dense(owner: str, params: Any, sizes: dict[str, int], axes: str) -> Linear:
    """A `flax.linen.Dense` with `axes`, `"in out"`."""
    inputs, outputs = axes.split()
    shapes = {"kernel": axes, "bias": outputs}
    arrays = read_arrays(owner, check_mapping(owner, params), shapes, sizes)
    return filled(
        lambda key: Linear(sizes[inputs], sizes[outputs], key=key),
        weight=arrays["kernel"].T,
        bias=arrays["bias"],
    )


def find_layers(params: Any, name: str) -> dict[str, Params]:
    """The subtrees that hold `name`, by their path: `"encoder.layers_0.seq"`."""
    check_mapping("params", params)
    found: dict[str, Params] = {}

    def walk(tree: Params, path: tuple[str, ...]) -> None:
        if name in tree:
            found[".".join(path)] = tree
            return
        for key, child in tree.items():
            if isinstance(child, Mapping):
                walk(child, (*path, str(key)))

    walk(params, ())
    if not found:
        raise UserError(f"params hold no layer with {name}; their keys are {', '.join(params)}")
    return found


def read_classifier(
    variables: Any,
    *,
    norm: str,
    mixer: Callable[..., Any],
    maps: Mapping[str, str],
    read_layer: Callable[[str, Params], SequenceLayer],
    pool: Pool,
) -> SequenceClassifier:
    """A whole model, in inference: norms before layers, no dropout, logits.

    **Arguments:**

    - `variables`: `params`, and `batch_stats` if it has batch norms.
    - `norm`: what a block calls its norm.
    - `mixer`: makes our mixer, as for a `Block`.
    - `maps`: what a block calls the linear maps of its mixer, and what ours calls them.
    - `read_layer`: makes a layer of its path and its params.
    - `pool`: as of `SequenceClassifier`.
    """
    variables = check_mapping("variables", variables)
    params = _inner("params", variables, "params")
    statistics = variables.get("batch_stats")
    _check_keys(
        "variables", variables, {"params", *(() if statistics is None else ["batch_stats"])}
    )
    _check_keys("params", params, {"encoder", "decoder"})
    encoder = _inner("params.encoder", params, "encoder")
    depth = sum(str(name).startswith("layers_") for name in encoder)
    layers = [f"layers_{i}" for i in range(max(depth, 1))]
    _check_keys("params.encoder", encoder, {"encoder", *layers})
    sizes: dict[str, int] = {}
    first = read_dense("params.encoder.encoder", encoder["encoder"], sizes, "inputs features")
    head = read_dense("params.decoder", params["decoder"], sizes, "features classes")

    def read_block(name: str) -> Block:
        path = f"params.encoder.{name}"
        block = _inner(path, encoder, name)
        _check_keys(path, block, {"seq", norm, *maps})
        found = None
        if statistics is not None:
            found = _at(statistics, ("encoder", name, norm), "batch_stats")
        made_norm = _read_norm(f"{path}.{norm}", block[norm], found, sizes)
        linears = {
            ours: read_dense(f"{path}.{theirs}", block[theirs], sizes, "features features")
            for theirs, ours in maps.items()
        }
        layer = read_layer(f"{path}.seq", _inner(f"{path}.seq", block, "seq"))
        if layer.idim != sizes["features"]:
            raise UserError(
                f"{path}.seq takes {layer.idim} features, but params.encoder.encoder gives "
                f"{sizes['features']}"
            )
        return Block(
            layer,
            make_mixer=lambda dim, *, key: _with_parts(mixer(dim, key=key), linears),
            make_norm=lambda dim: made_norm,
            key=jax.random.key(0),
        )

    blocks = [read_block(name) for name in layers]
    for name, block in zip(layers, blocks, strict=True):
        if _shapes(block) != _shapes(blocks[0]):
            raise UserError(f"params.encoder.{name} has other sizes than layers_0")
    model = eqx.filter_eval_shape(
        lambda key: SequenceClassifier(
            sizes["inputs"],
            sizes["classes"],
            make_layer=lambda key: blocks[0].layer,
            dim=sizes["features"],
            depth=len(blocks),
            pool=pool,
            key=key,
        ),
        jax.random.key(0),
    )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    # No norm follows the last block there.
    return eqx.tree_at(
        lambda model: (model.encoder, model.stack.blocks, model.norm, model.head),
        model,
        (first, stacked, Identity(), head),
    )


def _read_norm(
    owner: str, params: Any, statistics: Params | None, sizes: dict[str, int]
) -> LayerNorm | FrozenBatchNorm:
    shapes = {"scale": "features", "bias": "features"}
    arrays = read_arrays(owner, check_mapping(owner, params), shapes, sizes)
    if statistics is None:
        return filled(lambda key: LayerNorm(sizes["features"]), **arrays)
    shapes = {"mean": "features", "var": "features"}
    seen = read_arrays(f"batch_stats of {owner}", statistics, shapes, sizes)
    return FrozenBatchNorm(
        mean=jnp.asarray(seen["mean"]),
        variance=jnp.asarray(seen["var"]),
        scale=jnp.asarray(arrays["scale"]),
        bias=jnp.asarray(arrays["bias"]),
        epsilon=_BATCH_NORM_EPSILON,
    )


def _with_parts(module: Any, parts: Mapping[str, Any]) -> Any:
    return eqx.tree_at(
        lambda module: [getattr(module, name) for name in parts], module, list(parts.values())
    )


def _at(tree: Any, keys: tuple[str, ...], path: str) -> Params:
    for key in keys:
        tree, path = _inner(f"{path}.{key}", check_mapping(path, tree), key), f"{path}.{key}"
    return tree


def _inner(path: str, tree: Params, key: str) -> Params:
    if key not in tree:
        raise UserError(f"there is no {path}; beside it there are {', '.join(map(str, tree))}")
    return check_mapping(path, tree[key])


def _check_keys(path: str, tree: Params, keys: set[str]) -> None:
    if set(tree) != keys:
        raise UserError(
            f"{path} must hold {', '.join(sorted(keys))}; it holds "
            f"{', '.join(sorted(map(str, tree)))}"
        )


def _shapes(block: Block) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(block)]

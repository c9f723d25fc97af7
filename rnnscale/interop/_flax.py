"""Classifiers of flax as the S5 and LRU papers build them: a linear encoder, blocks of norm, layer
and gate, pooling, a linear decoder. The two importers of those papers' code share this."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from rnnscale._base import SequenceLayer
from rnnscale._errors import UserError
from rnnscale.interop._arrays import check_mapping, make_with, read_arrays, with_parts
from rnnscale.interop._frozen_batch_norm import FrozenBatchNorm
from rnnscale.layers import LayerNorm, Linear
from rnnscale.models import Block, Identity, SequenceClassifier

type Params = Mapping[str, Any]
type Pool = Literal["last", "mean", "none"]
type Norm = Literal["batch", "layer"]

# The default of flax for BatchNorm. That for LayerNorm is the default of ours.
_BATCH_NORM_EPSILON = 1e-5


def find_layers(params: Any, name: str) -> dict[str, Params]:
    """The subtrees that contain `name`, by their path, such as `"encoder.layers_0.seq"`."""
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
    norm: Norm,
    norm_name: str,
    mixer: Callable[..., Any],
    maps: Mapping[str, str],
    read_layer: Callable[[str, Params], SequenceLayer],
    pool: Pool,
) -> SequenceClassifier:
    """The classifier in inference: norms before layers, no dropout, logits.

    **Arguments:**

    - `variables`: `params`, and `batch_stats` if it has batch norms.
    - `norm`: the kind of its norms, since their weights have the same names and shapes.
    - `norm_name`: the name of the norm in a block.
    - `mixer`: makes our mixer, as for a `Block`.
    - `maps`: for each linear map of a block's mixer, its name there and its name in our mixer.
    - `read_layer`: makes a layer from its path and its parameters.
    - `pool`: as for `SequenceClassifier`.
    """
    variables = check_mapping("variables", variables)
    params = _subtree("params", variables, "params")
    if norm == "batch" and "batch_stats" not in variables:
        raise UserError(
            "variables hold no batch_stats: give those of the batch norms, or norm='layer' for a "
            "model with layer norms"
        )
    _check_keys(
        "variables", variables, {"params"} | ({"batch_stats"} if norm == "batch" else set())
    )
    statistics = variables.get("batch_stats")
    _check_keys("params", params, {"encoder", "decoder"})
    encoder = _subtree("params.encoder", params, "encoder")
    depth = sum(str(name).startswith("layers_") for name in encoder)
    names = [f"layers_{i}" for i in range(max(depth, 1))]
    _check_keys("params.encoder", encoder, {"encoder", *names})
    sizes: dict[str, int] = {}
    first = _read_dense("params.encoder.encoder", encoder["encoder"], sizes, "inputs features")
    head = _read_dense("params.decoder", params["decoder"], sizes, "features classes")

    def read_block(name: str) -> Block:
        path = f"params.encoder.{name}"
        block = _subtree(path, encoder, name)
        _check_keys(path, block, {"seq", norm_name, *maps})
        block_norm = _read_norm(
            f"{path}.{norm_name}", block[norm_name], statistics, (name, norm_name), sizes
        )
        linears = {
            ours: _read_dense(f"{path}.{theirs}", block[theirs], sizes, "features features")
            for theirs, ours in maps.items()
        }
        layer = read_layer(f"{path}.seq", _subtree(f"{path}.seq", block, "seq"))
        if layer.idim != sizes["features"]:
            raise UserError(
                f"{path}.seq takes {layer.idim} features, but params.encoder.encoder gives "
                f"{sizes['features']}"
            )
        return Block(
            layer,
            make_mixer=lambda dim, *, key: with_parts(mixer(dim, key=key), linears),
            make_norm=lambda dim: block_norm,
            key=jax.random.key(0),
        )

    blocks = [read_block(name) for name in names]
    for name, block in zip(names, blocks, strict=True):
        if _shapes(block) != _shapes(blocks[0]):
            raise UserError(f"params.encoder.{name} has other sizes than layers_0")
    return _assemble(first, blocks, head, sizes, pool)


def _assemble(
    encoder: Linear, blocks: list[Block], head: Linear, sizes: Mapping[str, int], pool: Pool
) -> SequenceClassifier:
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
    # Their models have no norm after the last block.
    return eqx.tree_at(
        lambda model: (model.encoder, model.stack.blocks, model.norm, model.head),
        model,
        (encoder, stacked, Identity(), head),
    )


def _read_dense(owner: str, params: Any, sizes: dict[str, int], axes: str) -> Linear:
    """A `flax.linen.Dense` whose kernel has the axes `"in out"`."""
    inputs, outputs = axes.split()
    arrays = read_arrays(owner, params, {"kernel": axes, "bias": outputs}, sizes)
    return make_with(
        lambda key: Linear(sizes[inputs], sizes[outputs], key=key),
        weight=arrays["kernel"].T,
        bias=arrays["bias"],
    )


def _read_norm(
    owner: str, params: Any, statistics: Any, keys: tuple[str, str], sizes: dict[str, int]
) -> LayerNorm | FrozenBatchNorm:
    """The batch norm whose mean and variance are at `encoder` and `keys` in the statistics; or a
    layer norm, if there are no statistics."""
    arrays = read_arrays(owner, params, {"scale": "features", "bias": "features"}, sizes)
    if statistics is None:
        return make_with(lambda key: LayerNorm(sizes["features"]), **arrays)
    path, tree = "batch_stats", check_mapping("batch_stats", statistics)
    for key in ("encoder", *keys):
        path = f"{path}.{key}"
        tree = _subtree(path, tree, key)
    seen = read_arrays(path, tree, {"mean": "features", "var": "features"}, sizes)
    return FrozenBatchNorm(
        mean=jnp.asarray(seen["mean"]),
        variance=jnp.asarray(seen["var"]),
        scale=jnp.asarray(arrays["scale"]),
        bias=jnp.asarray(arrays["bias"]),
        epsilon=_BATCH_NORM_EPSILON,
    )


def _subtree(path: str, tree: Params, key: str) -> Params:
    """`tree[key]`, which is called `path` in messages."""
    if key not in tree:
        raise UserError(f"there is no {path}; there is {', '.join(map(str, tree))}")
    return check_mapping(path, tree[key])


def _check_keys(path: str, tree: Params, keys: set[str]) -> None:
    if set(tree) != keys:
        raise UserError(
            f"{path} must hold {', '.join(sorted(keys))}; it holds "
            f"{', '.join(sorted(map(str, tree)))}"
        )


def _shapes(block: Block) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(block)]

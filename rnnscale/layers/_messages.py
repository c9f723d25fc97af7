"""What the modules of a network send one another along the edges of a graph."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from rnnscale._base import check_choice, check_size
from rnnscale._fields import parameter
from rnnscale.cells import linear

type Aggregation = Literal["sum", "mean", "attention"]


class Messages(eqx.Module):
    r"""Module $j$ sends $m_{ij} = M_{ij} h_j$ along an edge to module $i$, where $h_j$ is its last
    output, and $i$ hears

    $$a_i = \sum_{j \to i} w_{ij} m_{ij}, \qquad w_{ij} = \begin{cases}
        1 & \text{sum} \\
        1 / n_i & \text{mean} \\
        \mathrm{softmax}_{j \to i}\left((Q_i h_i) \cdot m_{ij} / \sqrt{d}\right) & \text{attention}
      \end{cases}$$

    for messages of $d$ features and $n_i$ edges to $i$. A module that nobody sends to hears zero.

    The maps $M$ are learned, or fixed if they are given; the queries $Q$ are always learned. Both
    start normal with the variance `1 / idim`.

    Attention: Vaswani et al., *Attention Is All You Need*, NeurIPS 2017; over the edges of a graph:
    Veličković et al., *Graph Attention Networks*, ICLR 2018.

    **Differs from the papers:** there is one head, a message is key and value in one, and the score
    is the product of the first paper, not the layer of the second.
    """

    learned_maps: Float[Array, "*each odim idim"] | None = parameter()
    fixed_maps: Float[Array, "*each odim idim"] | None = parameter(trainable=False)
    query: Float[Array, "*each odim idim"] | None = parameter()
    modules: int = eqx.field(static=True)
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    aggregation: Aggregation = eqx.field(static=True)

    def __init__(
        self,
        modules: int,
        idim: int,
        odim: int,
        aggregation: Aggregation,
        maps: Float[Array, "*each odim idim"] | None,
        *,
        stacks: tuple[tuple[int, ...], tuple[int, ...]],
        key: PRNGKeyArray,
    ):
        """`stacks` has the leading axes of the maps and those of the queries."""
        check_size(type(self), idim=idim, odim=odim)
        check_choice(type(self), "aggregation", aggregation, Aggregation)
        maps_shape, query_shape = ((*axes, odim, idim) for axes in stacks)
        if maps is not None and jnp.shape(maps) != maps_shape:
            raise ValueError(
                f"{type(self).__name__}: maps must have the shape {maps_shape}; got "
                f"{jnp.shape(maps)}."
            )
        maps_key, query_key = jax.random.split(key)

        def normal(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
            return jax.random.normal(key, shape, jnp.float32) / math.sqrt(idim)

        self.learned_maps = normal(maps_key, maps_shape) if maps is None else None
        self.fixed_maps = None if maps is None else jnp.asarray(maps, jnp.float32)
        self.query = normal(query_key, query_shape) if aggregation == "attention" else None
        self.modules, self.idim, self.odim = modules, idim, odim
        self.aggregation = aggregation

    @property
    def maps(self) -> Float[Array, "*each odim idim"]:
        """The maps, learned or fixed."""
        return self.learned_maps if self.fixed_maps is None else self.fixed_maps  # pyright: ignore[reportReturnType]

    @abstractmethod
    def weights(self) -> Any:
        """What `aggregate` uses, made of the parameters once a call, as in `Cell.weights`."""

    @abstractmethod
    def aggregate(
        self, weights: Any, outputs: Float[Array, "*axes modules idim"]
    ) -> Float[Array, "*axes modules odim"]:
        """What every module hears. It uses no arrays but `weights`."""


class _Pairs(NamedTuple):
    """What attention uses; the maps are zero for pairs that are not connected."""

    maps: Float[Array, "modules modules odim idim"]
    query: Float[Array, "modules odim idim"]
    mask: Bool[Array, "modules modules"]


class DenseMessages(Messages):
    """A map for every pair of modules, and a mask that says which pairs are connected.

    For few modules or many edges: sums and means are one product with a block matrix. What the maps
    hold for pairs that are not connected is not read.
    """

    mask: Bool[Array, "modules modules"] = parameter(trainable=False)

    def __init__(
        self,
        mask: Bool[ArrayLike, "modules modules"] | Sequence[Sequence[int]],
        idim: int,
        odim: int,
        *,
        aggregation: Aggregation = "sum",
        maps: Float[Array, "modules modules odim idim"] | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `mask`: 1 at `[i, j]` where module `j` sends to module `i`, and 0 elsewhere.
        - `idim`: features of a module's output; where modules differ, the most of any.
        - `odim`: features of a message.
        - `aggregation`: `"sum"`, `"mean"` or `"attention"`.
        - `maps`: fixed maps, at `[i, j]` the one from `j` to `i`. Default: learned ones.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` where a size is below 1, the mask is not square or not of 0 and 1,
        maps have another shape, or there is no such aggregation.
        """
        entries = np.asarray(mask)
        if entries.ndim != 2 or entries.shape[0] != entries.shape[1] or not entries.size:
            raise ValueError(
                "DenseMessages: mask must be a square matrix, with a row for each module that "
                f"receives and a column for each that sends; got shape {entries.shape}."
            )
        if not np.isin(entries, (0, 1)).all():
            raise ValueError(
                "DenseMessages: mask must be of 0 and 1, and the strength of an edge is part of "
                f"its map; got {np.setdiff1d(entries, (0, 1))[0]}."
            )
        modules = len(entries)
        stacks = (modules, modules), (modules,)
        super().__init__(modules, idim, odim, aggregation, maps, stacks=stacks, key=key)
        self.mask = jnp.asarray(entries, bool)

    def weights(self) -> Float[Array, "received sent"] | _Pairs:
        maps = jnp.where(self.mask[..., None, None], self.maps, 0)
        if self.query is not None:
            return _Pairs(maps, self.query, self.mask)
        if self.aggregation == "mean":
            maps /= jnp.maximum(self.mask.sum(axis=1), 1)[:, None, None, None]
        return maps.swapaxes(1, 2).reshape(self.modules * self.odim, self.modules * self.idim)

    def aggregate(
        self, weights: Any, outputs: Float[Array, "*axes modules idim"]
    ) -> Float[Array, "*axes modules odim"]:
        if self.aggregation != "attention":
            axes = outputs.shape[:-2]
            heard = linear(weights, outputs.reshape(*axes, -1))
            return heard.reshape(*axes, self.modules, self.odim)
        maps, query, mask = weights
        messages = jnp.einsum("ijmk,...jk->...ijm", maps, outputs)
        queries = jnp.einsum("imk,...ik->...im", query, outputs)
        scores = jnp.einsum("...im,...ijm->...ij", queries, messages) / math.sqrt(self.odim)
        # Not minus infinity: the softmax of a module that nobody sends to would be NaN.
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        return jnp.einsum("...ij,...ijm->...im", jax.nn.softmax(scores, axis=-1), messages)


class _Edges(NamedTuple):
    maps: Any
    query: Any
    senders: Int[Array, "edges"]
    receivers: Int[Array, "edges"]


class SparseMessages(Messages):
    """A list of edges, each with a map of its own, or all with the same one.

    For many modules. Two modules may have several edges.
    """

    senders: Int[Array, "edges"] = parameter(trainable=False)
    receivers: Int[Array, "edges"] = parameter(trainable=False)
    shared: bool = eqx.field(static=True)

    def __init__(
        self,
        senders: Sequence[int] | Int[ArrayLike, "edges"],
        receivers: Sequence[int] | Int[ArrayLike, "edges"],
        modules: int,
        idim: int,
        odim: int,
        *,
        aggregation: Aggregation = "sum",
        maps: Literal["own", "shared"]
        | Float[Array, "edges odim idim"]
        | Float[Array, "odim idim"] = "own",
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `senders`, `receivers`: the module that each edge comes from and the one that it goes to,
            from 0 to `modules - 1`.
        - `modules`: how many there are.
        - `maps`: `"own"` learns a map for every edge and a query map for every module, `"shared"`
            one of each for all. An array has fixed maps, one an edge or one for all.
        - `idim`, `odim`, `aggregation`, `key`: see `DenseMessages`.

        **Raises:** `ValueError` where a size is below 1, there are not as many senders as receivers
        or none at all, a module does not exist, maps have another shape, or there is no such choice
        of maps or aggregation.
        """
        self.senders, self.receivers = _checked_edges(senders, receivers, modules)
        fixed = None if isinstance(maps, str) else maps
        if fixed is None and maps not in ("own", "shared"):
            raise ValueError(
                f"SparseMessages: maps must be 'own', 'shared' or an array; got {maps!r}."
            )
        self.shared = maps == "shared" if fixed is None else jnp.ndim(fixed) == 2
        stacks = ((), ()) if self.shared else ((len(self.senders),), (modules,))
        super().__init__(modules, idim, odim, aggregation, fixed, stacks=stacks, key=key)

    def weights(self) -> _Edges:
        return _Edges(self.maps, self.query, self.senders, self.receivers)

    def aggregate(
        self, weights: _Edges, outputs: Float[Array, "*axes modules idim"]
    ) -> Float[Array, "*axes modules odim"]:
        maps, query, senders, receivers = weights

        def add_up(values: Float[Array, "edges ..."]) -> Float[Array, "modules ..."]:
            return jax.ops.segment_sum(values, receivers, self.modules)

        if self.shared:
            messages = linear(maps, outputs)[..., senders, :]
        else:
            messages = jnp.einsum("emk,...ek->...em", maps, outputs[..., senders, :])
        messages = jnp.moveaxis(messages, -2, 0)
        if self.aggregation == "attention":
            if self.shared:
                queries = linear(query, outputs)
            else:
                queries = jnp.einsum("imk,...ik->...im", query, outputs)
            queries = jnp.moveaxis(queries, -2, 0)[receivers]
            scores = jnp.sum(queries * messages, axis=-1) / math.sqrt(self.odim)
            top = jax.ops.segment_max(jax.lax.stop_gradient(scores), receivers, self.modules)
            shares = jnp.exp(scores - top[receivers])
            messages *= (shares / add_up(shares)[receivers])[..., None]
        heard = jnp.moveaxis(add_up(messages), 0, -2)
        if self.aggregation == "mean":
            heard /= jnp.maximum(add_up(jnp.ones(receivers.shape, heard.dtype)), 1)[:, None]
        return heard


def _checked_edges(
    senders: Any, receivers: Any, modules: int
) -> tuple[Int[Array, "edges"], Int[Array, "edges"]]:
    check_size(SparseMessages, modules=modules)
    sources, targets = np.asarray(senders), np.asarray(receivers)
    for name, ends in {"senders": sources, "receivers": targets}.items():
        if ends.ndim != 1 or not ends.size or not np.issubdtype(ends.dtype, np.integer):
            raise ValueError(
                f"SparseMessages: {name} must be a list of at least one module, by its number; got "
                f"{ends.dtype} of shape {ends.shape}."
            )
        outside = ends[(ends < 0) | (ends >= modules)]
        if outside.size:
            raise ValueError(
                f"SparseMessages: {name} must be from 0 to {modules - 1}, for {modules} modules; "
                f"got {outside[0]}."
            )
    if len(sources) != len(targets):
        raise ValueError(
            "SparseMessages: senders and receivers are the two ends of each edge; got "
            f"{len(sources)} senders and {len(targets)} receivers."
        )
    return jnp.asarray(sources, jnp.int32), jnp.asarray(targets, jnp.int32)

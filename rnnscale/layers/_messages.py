"""The messages between the modules of `ModularRNN`, along the edges of a graph."""

import math
from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from numpy.typing import ArrayLike

from rnnscale._checks import Size, check_arguments
from rnnscale._fields import parameter
from rnnscale.cells import linear

type Aggregation = Literal["sum", "mean", "attention"]


class Messages(eqx.Module):
    r"""Module $j$ sends $m_{ij} = M_{ij} h_j$ along an edge to module $i$, where $h_j$ is its last
    output, and module $i$ receives

    $$a_i = \sum_{j \to i} w_{ij} m_{ij}, \qquad w_{ij} = \begin{cases}
        1 & \text{sum} \\
        1 / n_i & \text{mean} \\
        \mathrm{softmax}_{j \to i}\left((Q_i h_i) \cdot m_{ij} / \sqrt{d}\right) & \text{attention}
      \end{cases}$$

    for messages of $d$ features and $n_i$ edges to $i$. A module without incoming edges receives
    zero.

    The maps $M$ are learned, or fixed if they are given; the queries $Q$ are always learned. Both
    start from a normal distribution with variance `1 / idim`.

    Attention: Vaswani et al., *Attention Is All You Need*, NeurIPS 2017; over the edges of a graph:
    Veličković et al., *Graph Attention Networks*, ICLR 2018.

    **Differs from the papers:** there is one head, a message is both key and value, and the score
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
        """`stacks` are the leading axes of the maps and of the queries."""
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
        """The arrays for `aggregate`, computed once a call, as in `Cell.weights`."""

    @abstractmethod
    def aggregate(
        self, weights: Any, outputs: Float[Array, "*axes modules idim"]
    ) -> Float[Array, "*axes modules odim"]:
        """The aggregate that each module receives. It uses no arrays of `self`, only `weights`."""


class _Pairs(NamedTuple):
    """The weights for attention. The maps of pairs that are not connected are zero."""

    maps: Float[Array, "modules modules odim idim"]
    query: Float[Array, "modules odim idim"]
    mask: Bool[Array, "modules modules"]


class DenseMessages(Messages):
    """A map for every pair of modules, and a mask that says which pairs are connected.

    For few modules or many edges: sums and means are one product with a block matrix. The maps of
    pairs that are not connected are not used.
    """

    mask: Bool[Array, "modules modules"] = parameter(trainable=False)

    @check_arguments
    def __init__(
        self,
        mask: ArrayLike,
        idim: Size,
        odim: Size,
        *,
        aggregation: Aggregation = "sum",
        maps: Float[Array, "modules modules odim idim"] | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `mask`: 1 at `[i, j]` where module `j` sends to module `i`, and 0 elsewhere.
        - `idim`: features of a module's output; if modules differ, the largest.
        - `odim`: features of a message.
        - `aggregation`: `"sum"`, `"mean"` or `"attention"`.
        - `maps`: fixed maps, at `[i, j]` the one from `j` to `i`. Default learned maps.
        - `key`: for the initial parameters.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if a size is below 1,
        the mask is not square or has other values than 0 and 1, maps have another shape, or
        `aggregation` is invalid.
        """
        entries = np.asarray(mask)
        if entries.ndim != 2 or entries.shape[0] != entries.shape[1] or not entries.size:
            raise ValueError(
                "DenseMessages: mask must be a square matrix, with a row for each module that "
                f"receives and a column for each that sends; got shape {entries.shape}."
            )
        if not np.isin(entries, (0, 1)).all():
            raise ValueError(
                "DenseMessages: mask must have entries 0 and 1 only, since the strength of an edge "
                f"is part of its map; got {np.setdiff1d(entries, (0, 1))[0]}."
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
            received = linear(weights, outputs.reshape(*axes, self.modules * self.idim))
            return received.reshape(*axes, self.modules, self.odim)
        maps, query, mask = weights
        messages = jnp.einsum("ijmk,...jk->...ijm", maps, outputs)
        queries = jnp.einsum("imk,...ik->...im", query, outputs)
        scores = jnp.einsum("...im,...ijm->...ij", queries, messages) / math.sqrt(self.odim)
        # Not minus infinity, with which the softmax of a module without incoming edges is NaN.
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        return jnp.einsum("...ij,...ijm->...im", jax.nn.softmax(scores, axis=-1), messages)


class _Edges(NamedTuple):
    """The weights and ends of all edges."""

    maps: Any
    query: Any
    senders: Int[Array, "edges"]
    receivers: Int[Array, "edges"]


class SparseMessages(Messages):
    """A list of edges, each with a map of its own, or all with the same one.

    For many modules. Several edges may connect the same two modules.
    """

    senders: Int[Array, "edges"] = parameter(trainable=False)
    receivers: Int[Array, "edges"] = parameter(trainable=False)
    shared: bool = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        senders: ArrayLike,
        receivers: ArrayLike,
        modules: Size,
        idim: Size,
        odim: Size,
        *,
        aggregation: Aggregation = "sum",
        maps: Literal["own", "shared"]
        | Float[Array, "edges odim idim"]
        | Float[Array, "odim idim"] = "own",
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `senders`, `receivers`: the modules at the start and at the end of each edge, numbers from
            0 to `modules - 1`.
        - `modules`: the number of modules.
        - `maps`: `"own"` learns a map for every edge and a query map for every module, `"shared"`
            one of each for all. An array has fixed maps, one for each edge or one for all.
        - `idim`, `odim`, `aggregation`, `key`: see `DenseMessages`.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if a size is below 1,
        there is no edge, the numbers of senders and receivers differ, a module does not exist, maps
        have another shape, or `maps` or `aggregation` is invalid.
        """
        self.senders, self.receivers = _checked_edges(senders, receivers, modules)
        fixed = None if isinstance(maps, str) else maps
        self.shared = maps == "shared" if fixed is None else jnp.ndim(fixed) == 2
        stacks = ((), ()) if self.shared else ((len(self.senders),), (modules,))
        super().__init__(modules, idim, odim, aggregation, fixed, stacks=stacks, key=key)

    def weights(self) -> _Edges:
        return _Edges(self.maps, self.query, self.senders, self.receivers)

    def aggregate(
        self, weights: _Edges, outputs: Float[Array, "*axes modules idim"]
    ) -> Float[Array, "*axes modules odim"]:
        maps, query, senders, receivers = weights

        def sum_edges(values: Float[Array, "edges ..."]) -> Float[Array, "modules ..."]:
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
            exponentials = jnp.exp(scores - top[receivers])
            messages *= (exponentials / sum_edges(exponentials)[receivers])[..., None]
        received = jnp.moveaxis(sum_edges(messages), 0, -2)
        if self.aggregation == "mean":
            edges = sum_edges(jnp.ones(receivers.shape, received.dtype))
            received /= jnp.maximum(edges, 1)[:, None]
        return received


def _checked_edges(
    senders: Any, receivers: Any, modules: int
) -> tuple[Int[Array, "edges"], Int[Array, "edges"]]:
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
            "SparseMessages: senders and receivers are the two ends of each edge, so there must be "
            f"as many; got {len(sources)} senders and {len(targets)} receivers."
        )
    return jnp.asarray(sources, jnp.int32), jnp.asarray(targets, jnp.int32)

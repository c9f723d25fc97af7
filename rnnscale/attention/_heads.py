"""What the layers of this package share: maps between features and heads, and a single step."""

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float


def to_heads(
    weight: Float[Array, "heads out idim"],
    x: Float[Array, "*axes idim"],
    dtype: DTypeLike | None = None,
) -> Float[Array, "*axes heads out"]:
    """`weight[head] @ x` for every head, with weights cast to the dtype of `x`.

    - `dtype`: that of the sums and the result. Default that of `x`.
    """
    dtype = x.dtype if dtype is None else dtype
    return jnp.einsum("...i,hoi->...ho", x, weight.astype(x.dtype), preferred_element_type=dtype)


def from_heads(
    weight: Float[Array, "odim heads value"],
    ys: Float[Array, "*axes heads value"],
    dtype: DTypeLike,
) -> Float[Array, "*axes odim"]:
    """The sum of `weight[:, head] @ y` over heads, in `dtype`."""
    return jnp.einsum("...hv,ohv->...o", ys.astype(dtype), weight.astype(dtype))


def with_ones(value: Float[Array, "*axes value"]) -> Float[Array, "*axes value+1"]:
    """The values with a feature that is always one. Its memory is the sum of the keys."""
    return jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)


def attention_step(
    memory: Float[Array, "*batch heads key value"],
    query: Float[Array, "*batch heads key"],
    key: Float[Array, "*batch heads key"],
    value: Float[Array, "*batch heads value"],
    log_decay: Float[Array, "*batch heads #key"] | None = None,
) -> tuple[Float[Array, "*batch heads key value"], Float[Array, "*batch heads value"]]:
    """One step of `linear_attention`: the memory after it, and what the query reads from that.

    Both have the dtype of the memory.
    """
    query, key, value = (x.astype(memory.dtype) for x in (query, key, value))
    if log_decay is not None:
        memory = jnp.exp(log_decay)[..., None] * memory
    memory = memory + key[..., :, None] * value[..., None, :]
    return memory, jnp.einsum("...hk,...hkv->...hv", query, memory)


def features_of_head(owner: str, name: str, idim: int, parts: int, given: int | None) -> int:
    """`given`, or `idim / parts`.

    **Raises:** `ValueError`, naming `owner`, if `parts` does not divide `idim`.
    """
    if given is None and idim % parts:
        raise ValueError(
            f"{owner}: {name} is idim / {parts} by default, so {parts} must divide idim; got "
            f"idim={idim}. Choose another number of heads, or give {name}."
        )
    return idim // parts if given is None else given

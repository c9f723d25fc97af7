"""What the layers of this package share: maps between features and heads, and a single step."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray


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


def features_of_head(
    owner: str, name: str, given: int | None, idim: int, heads: int, *, part: int = 1
) -> int:
    """`given`, or those of a head if all heads together have `idim / part`.

    **Raises:** `ValueError`, naming `owner` and the argument, if that is not an integer.
    """
    if given is not None:
        return given
    if idim % (part * heads):
        divisor = "heads" if part == 1 else f"{part} * heads"
        raise ValueError(
            f"{owner}: {divisor} must divide idim={idim}; got heads={heads}. Choose another number "
            f"of heads, or give {name}."
        )
    return idim // (part * heads)


def lecun_normal(key: PRNGKeyArray, shape: tuple[int, ...], inputs: int) -> Float[Array, "..."]:
    """Normal of variance `1 / inputs`."""
    return jax.random.normal(key, shape, jnp.float32) / math.sqrt(inputs)

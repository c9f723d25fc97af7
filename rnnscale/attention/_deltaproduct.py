"""DeltaProduct, several delta rules in each step."""

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Size, Width, check_arguments
from rnnscale.attention._delta_rule import Decay, DeltaRule, Strength
from rnnscale.attention._heads import features_of_head


class DeltaProduct(DeltaRule):
    r"""DeltaNet with several delta rules in each step.

    With $q, k, v, \beta$ as in `DeltaNet`, but $m$ = `substeps` keys, values and strengths in each
    step,

    $$H_{t,0} = \alpha_t H_{t-1}, \qquad
      H_{t,i} = (I - \beta_{t,i} k_{t,i} k_{t,i}^T) H_{t,i-1} + \beta_{t,i} k_{t,i} v_{t,i}^T,
      \qquad H_t = H_{t,m}$$

    and outputs are read from $H_t$ as in `DeltaNet`. The transition is a product of $m$ reflections
    or projections. Two reflections are a rotation: with $m = 2$ a layer counts modulo any number
    and composes the permutations of three things; $n$ things take at most $m = n - 1$.

    With `decay`, $\alpha_t$ is that of `GatedDeltaNet`; together with `gate` this is the paper's
    Gated DeltaProduct. Otherwise $\alpha_t = 1$. The state is that of `DeltaNet`. A step takes `m`
    times the time of a step of `DeltaNet`.

    Siems, Carstensen, Zela, Hutter, Pontil, Grazzi, *DeltaProduct: Improving State-Tracking in
    Linear RNNs via Householder Products*, NeurIPS 2025.

    **Differs from the paper:** projections start Lecun-normal; in the authors' models their
    standard deviation is 0.02 whatever the width.
    """

    decay: Decay | None

    @check_arguments
    def __init__(
        self,
        idim: Size,
        heads: Size,
        odim: Size | None = None,
        *,
        substeps: Size = 2,
        key_dim: Size | None = None,
        value_dim: Size | None = None,
        conv_width: Width | None = 4,
        gate: bool = False,
        decay: bool = False,
        beta_max: Strength = 2.0,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `heads`: the number of heads.
        - `odim`: features of the output. Default `idim`.
        - `substeps`: delta rules in each step.
        - `key_dim`: features of queries and keys in a head. Default `idim / heads`.
        - `value_dim`: features of values in a head. Default `key_dim`.
        - `conv_width`: steps of the short convolution, at least 2; `None` for no convolution.
        - `gate`: multiply the normed outputs of each head by $\mathrm{silu}(W x_t)$.
        - `decay`: let the memory decay as that of `GatedDeltaNet`.
        - `beta_max`: the upper bound of $\beta$, at most 2. An array leaf that is not trained.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size or `beta_max` is out of range, or if `heads` does not
        divide `idim` and there is no `key_dim`; `TypeError` if an argument is another kind of
        thing.
        """
        decay_key = jax.random.fold_in(key, 1)
        key_dim = features_of_head("DeltaProduct", "key_dim", key_dim, idim, heads)
        super().__init__(
            *(idim, heads, odim),
            key_dim=key_dim,
            value_dim=key_dim if value_dim is None else value_dim,
            substeps=substeps,
            conv_width=conv_width,
            gate=gate,
            beta_max=beta_max,
            key=key,
        )
        self.decay = Decay(idim, heads, key=decay_key) if decay else None

    def log_decay(self, xs: Float[Array, "*axes idim"]) -> Float[Array, "*axes heads"] | None:
        return None if self.decay is None else self.decay(xs)

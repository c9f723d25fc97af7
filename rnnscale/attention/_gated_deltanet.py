"""Gated DeltaNet, the delta rule with a decay for each head."""

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Size, Width, check_arguments
from rnnscale.attention._delta_rule import Decay, DeltaRule, Strength
from rnnscale.attention._heads import features_of_head


class GatedDeltaNet(DeltaRule):
    r"""DeltaNet whose memory also decays, by a factor that depends on the input.

    With $q, k, v, \beta$ as in `DeltaNet`,

    $$H_t = (I - \beta_t k_t k_t^T) \alpha_t H_{t-1} + \beta_t k_t v_t^T, \qquad
      \log \alpha_t = -e^{a} \, \mathrm{softplus}(W_\alpha x_t + b)$$
    $$y_t = \mathrm{RMSNorm}(H_t^T q_t / \sqrt{K}) \odot \mathrm{silu}(W_g x_t)$$

    and the output is linear in the $y$ of all heads. The decay forgets everything at once, the
    delta rule what is along one key. $e^a$ starts uniform in $(0, 16]$, and
    $\mathrm{softplus}(b)$ log-uniform in $[0.001, 0.1]$. The state is that of `DeltaNet`.

    Yang, Kautz, Hatamizadeh, *Gated Delta Networks: Improving Mamba2 with Delta Rule*, ICLR 2025.

    **Differs from the paper:** projections start Lecun-normal; in the authors' models their
    standard deviation is 0.02 whatever the width.
    """

    decay: Decay

    @check_arguments
    def __init__(
        self,
        idim: Size,
        heads: Size,
        odim: Size | None = None,
        *,
        key_dim: Size | None = None,
        value_dim: Size | None = None,
        conv_width: Width | None = 4,
        gate: bool = True,
        beta_max: Strength = 1.0,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `heads`: the number of heads.
        - `odim`: features of the output. Default `idim`.
        - `key_dim`: features of queries and keys in a head. Default `idim / heads`; the paper's
            models have three quarters of it, and so about `6 idim²` parameters.
        - `value_dim`: features of values in a head. Default `2 * key_dim`.
        - `conv_width`: steps of the short convolution, at least 2; `None` for no convolution.
        - `gate`: multiply the normed outputs of each head by $\mathrm{silu}(W_g x_t)$.
        - `beta_max`: the upper bound of $\beta$, at most 2; above 1, eigenvalues may be negative.
            An array leaf that is not trained.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size or `beta_max` is out of range, or if `heads` does not
        divide `idim` and there is no `key_dim`; `TypeError` if an argument is another kind of
        thing.
        """
        key, decay_key = jax.random.split(key)
        key_dim = features_of_head("GatedDeltaNet", "key_dim", key_dim, idim, heads)
        super().__init__(
            *(idim, heads, odim),
            key_dim=key_dim,
            value_dim=2 * key_dim if value_dim is None else value_dim,
            conv_width=conv_width,
            gate=gate,
            beta_max=beta_max,
            key=key,
        )
        self.decay = Decay(idim, heads, key=decay_key)

    def log_decay(self, xs: Float[Array, "*axes idim"]) -> Float[Array, "*axes heads"] | None:
        return self.decay(xs)

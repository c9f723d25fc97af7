"""DeltaNet, linear attention with the delta rule."""

from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import Size, Width, check_arguments
from rnnscale.attention._delta_rule import DeltaRule, Strength
from rnnscale.attention._heads import features_of_head


class DeltaNet(DeltaRule):
    r"""Linear attention that replaces what its memory holds along a key.

    Each head has a matrix $H$. With $q, k, v = \mathrm{silu}(\mathrm{conv}(W x))$, of which $q$ and
    $k$ are scaled to unit length in each head, and
    $\beta_t = \beta_{\max} \, \mathrm{sigmoid}(W_\beta x_t)$,

    $$H_t = (I - \beta_t k_t k_t^T) H_{t-1} + \beta_t k_t v_t^T, \qquad
      y_t = \mathrm{RMSNorm}(H_t^T q_t / \sqrt{K})$$

    and the output is linear in the $y$ of all heads. The step moves $H^T k$, what the memory holds
    along the key, towards the value: with $\beta = 1$ it becomes the value, with $\beta = 2$ and
    no value $H$ is reflected. The eigenvalues of the transition are 1 and $1 - \beta_t$, so
    states don't grow. With $\beta_{\max} = 2$ they may be negative, which parity and other tasks
    that track a state need.

    The state is `(past, memory)`: the last inputs of the convolution, and $H$ in at least float32.

    Yang, Wang, Zhang, Shen, Kim, *Parallelizing Linear Transformers with the Delta Rule over
    Sequence Length*, NeurIPS 2024; for $\beta_{\max} = 2$, Grazzi, Siems, Zela, Franke, Hutter,
    Pontil, *Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues*, ICLR 2025.

    **Differs from the paper:** $\beta_{\max}$ is 2 by default, and 1 in the first paper.
    Projections start Lecun-normal; in the authors' models their standard deviation is 0.02 whatever
    the width.
    """

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
        gate: bool = False,
        beta_max: Strength = 2.0,
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `idim`: features of the input.
        - `heads`: the number of heads.
        - `odim`: features of the output. Default `idim`.
        - `key_dim`: features of queries and keys in a head. Default `idim / heads`.
        - `value_dim`: features of values in a head. Default `key_dim`.
        - `conv_width`: steps of the short convolution, at least 2; `None` for no convolution.
        - `gate`: multiply the normed outputs of each head by $\mathrm{silu}(W x_t)$.
        - `beta_max`: the upper bound of $\beta$, at most 2. An array leaf that is not trained.
        - `key`: for the initial parameters.

        **Raises:** `ValueError` if a size or `beta_max` is out of range, or if `heads` does not
        divide `idim` and there is no `key_dim`; `TypeError` if an argument is another kind of
        thing.
        """
        key_dim = features_of_head("DeltaNet", "key_dim", key_dim, idim, heads)
        super().__init__(
            *(idim, heads, odim),
            key_dim=key_dim,
            value_dim=key_dim if value_dim is None else value_dim,
            conv_width=conv_width,
            gate=gate,
            beta_max=beta_max,
            key=key,
        )

    def log_decay(self, xs: Float[Array, "*axes idim"]) -> Float[Array, "*axes heads"] | None:
        return None

"""xLSTM in `transformers`: an mLSTM and a gated feed-forward network in each block."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._checks import Must, Positive, Size
from rnnscale._errors import UserError
from rnnscale.attention import MLSTM
from rnnscale.interop._transformers_model import (
    Off,
    On,
    Source,
    TransformersModel,
    same,
    stack,
)
from rnnscale.layers import RMSNorm
from rnnscale.models import GatedFFN, Identity


@dataclass(frozen=True, kw_only=True)
class XLSTMForCausalLM(TransformersModel):
    """See `MLSTM`. In published models only the input and forget gates have biases."""

    embedding = "backbone.embeddings.weight"
    last_norm = same("backbone.out_norm.weight", "hidden")
    layers = "backbone.blocks"

    num_heads: Size
    hidden_size: Size | None = None
    embedding_dim: Size | None = None
    num_hidden_layers: Size | None = None
    num_blocks: Size | None = None
    qk_dim_factor: Positive = 0.5
    v_dim_factor: Positive = 1.0
    ffn_proj_factor: Positive = 2.667
    ffn_round_up_to_multiple_of: Size = 64
    gate_soft_cap: Positive = 15.0
    output_logit_soft_cap: Positive | None = 30.0
    norm_eps: Positive = 1e-6
    eps: Annotated[float, Must("be 1e-6", lambda eps: eps == 1e-6)] = 1e-6
    weight_mode: Literal["single", "fused"] = "single"
    use_bias: Off = False
    add_out_norm: On = True
    tie_word_embeddings: Off = False  # transformers ties no head of an xLSTM

    def __post_init__(self):
        for option, features in (("qk_dim_factor", self._keys), ("v_dim_factor", self._values)):
            if features % self.num_heads:
                raise UserError(
                    f"config.json: num_heads={self.num_heads} must divide the {features} features "
                    f"that {option} gives"
                )

    @property
    def _dim(self) -> int:
        return self._one_of("hidden_size", "embedding_dim")

    @property
    def _depth(self) -> int:
        return self._one_of("num_hidden_layers", "num_blocks")

    @property
    def _keys(self) -> int:
        return int(self._dim * self.qk_dim_factor)

    @property
    def _values(self) -> int:
        return int(self._dim * self.v_dim_factor)

    def _one_of(self, *names: str) -> int:
        """A size with two names, one of which may be absent."""
        sizes = {getattr(self, name) for name in names} - {None}
        if len(sizes) != 1:
            raise UserError(f"config.json must have {' or '.join(names)}, and only one value")
        return sizes.pop()

    def sizes(self) -> dict[str, int]:
        unit = self.ffn_round_up_to_multiple_of
        return {
            "vocab": self.vocab_size,
            "hidden": self._dim,
            "heads": self.num_heads,
            "keys": self._keys,
            "values": self._values,
            "projections": 2 * (self._keys + self._values),
            "mlp": int((self._dim * self.ffn_proj_factor + unit - 1) // unit) * unit,
        }

    def options(self) -> dict[str, Any]:
        def make_layer(key: PRNGKeyArray) -> MLSTM:
            return MLSTM(
                self._dim,
                self.num_heads,
                key_dim=self._keys // self.num_heads,
                value_dim=self._values // self.num_heads,
                gate_cap=self.gate_soft_cap,
                epsilon=self.norm_eps,
                key=key,
            )

        return {
            "make_layer": make_layer,
            "depth": self._depth,
            "make_mixer": Identity,
            "make_ffn": partial(GatedFFN, hidden=self.sizes()["mlp"], use_bias=False),
            "make_norm": partial(RMSNorm, epsilon=self.norm_eps),
            "logit_cap": self.output_logit_soft_cap,
        }

    def block(self, depth: int) -> Mapping[str, Source]:
        weights = self._fused_weights() if self.weight_mode == "fused" else self._weights()
        return weights | {
            "norm.scale": same("norm_mlstm.weight", "hidden"),
            "layer.scale": Source({"mlstm_layer.multihead_norm.weight": "values"}, self._by_head),
            "layer.output": Source(
                {"mlstm_layer.out_proj.weight": "hidden values"},
                lambda weight: weight.reshape(len(weight), self.num_heads, -1),
            ),
            "layer.gate_cap": Source({}, lambda: np.array(self.gate_soft_cap, np.float32)),
            "ffn_norm.scale": same("norm_ffn.weight", "hidden"),
            "ffn.w_out": same("ffn.proj_down.weight", "hidden mlp"),
        }

    def _weights(self) -> dict[str, Source]:
        """The weights that a fused model has in other tensors."""

        def projection(name: str, features: str) -> Source:
            return Source({f"mlstm_layer.{name}.weight": f"{features} hidden"}, self._by_head)

        gates = ("mlstm_layer.igate_preact", "mlstm_layer.fgate_preact")
        return {
            "layer.query": projection("q", "keys"),
            "layer.key": projection("k", "keys"),
            "layer.value": projection("v", "values"),
            "layer.output_gate": projection("ogate_preact", "values"),
            "layer.gates": stack([f"{name}.weight" for name in gates], "heads hidden"),
            "layer.gate_bias": stack([f"{name}.bias" for name in gates], "heads"),
            "ffn.w_in": stack(["ffn.proj_up_gate.weight", "ffn.proj_up.weight"], "mlp hidden"),
        }

    def _fused_weights(self) -> dict[str, Source]:
        """The same, as rows of larger matrices."""
        ends = np.cumsum([self._keys, self._keys, self._values])

        def projection(i: int) -> Source:
            return Source(
                {"mlstm_layer.qkv_opreact.weight": "projections hidden"},
                lambda weight: self._by_head(np.split(weight, ends)[i]),
            )

        def halves(name: str, axes: str) -> Source:
            return Source({name: axes}, lambda tensor: np.stack(np.split(tensor, 2)))

        return {
            "layer.query": projection(0),
            "layer.key": projection(1),
            "layer.value": projection(2),
            "layer.output_gate": projection(3),
            "layer.gates": halves("mlstm_layer.ifgate_preact.weight", "2*heads hidden"),
            "layer.gate_bias": halves("mlstm_layer.ifgate_preact.bias", "2*heads"),
            "ffn.w_in": halves("ffn.proj_up_gate_z.weight", "2*mlp hidden"),
        }

    def _by_head(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        return tensor.reshape(self.num_heads, -1, *tensor.shape[1:])

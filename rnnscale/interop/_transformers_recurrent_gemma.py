"""RecurrentGemma in `transformers`: Griffin with a gated feed-forward network in each block."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale._checks import NonEmpty, Positive, Share, Size
from rnnscale._errors import UserError
from rnnscale.attention import LocalAttention
from rnnscale.interop._transformers_model import (
    Off,
    Source,
    TransformersModel,
    one_plus,
    same,
    stack,
    taps,
)
from rnnscale.layers import GriffinRecurrence, RMSNorm
from rnnscale.models import GatedFFN, Identity

_RECURRENCE: Mapping[str, Source] = {
    "layer.w_in": stack(
        ["temporal_block.linear_x.weight", "temporal_block.linear_y.weight"], "width hidden"
    ),
    "layer.b_in": stack(["temporal_block.linear_x.bias", "temporal_block.linear_y.bias"], "width"),
    "layer.conv.weight": taps("temporal_block.conv_1d.weight", "width taps"),
    "layer.conv.bias": same("temporal_block.conv_1d.bias", "width"),
    "layer.cell.gates": Source(
        {
            "temporal_block.rg_lru.recurrent_gate_weight": "heads block block",
            "temporal_block.rg_lru.input_gate_weight": "heads block block",
        },
        # Theirs multiply from the right.
        lambda *gates: np.stack(gates).swapaxes(-1, -2),
    ),
    "layer.cell.bias": Source(
        {
            "temporal_block.rg_lru.recurrent_gate_bias": "heads block",
            "temporal_block.rg_lru.input_gate_bias": "heads block",
        },
        lambda *biases: np.stack(biases).reshape(2, -1),
    ),
    "layer.cell.decay": same("temporal_block.rg_lru.recurrent_param", "width"),
    "layer.w_out": same("temporal_block.linear_out.weight", "hidden width"),
    "layer.b_out": same("temporal_block.linear_out.bias", "hidden"),
}


_EVERY_BLOCK: Mapping[str, Source] = {
    "norm.scale": one_plus("temporal_pre_norm.weight", "hidden"),
    "ffn_norm.scale": one_plus("channel_pre_norm.weight", "hidden"),
    "ffn.w_in": stack(["mlp_block.gate_proj.weight", "mlp_block.up_proj.weight"], "mlp hidden"),
    "ffn.b_in": stack(["mlp_block.gate_proj.bias", "mlp_block.up_proj.bias"], "mlp"),
    "ffn.w_out": same("mlp_block.down_proj.weight", "hidden mlp"),
    "ffn.b_out": same("mlp_block.down_proj.bias", "hidden"),
}

type Kind = Literal["recurrent", "attention"]


@dataclass(frozen=True, kw_only=True)
class RecurrentGemmaForCausalLM(TransformersModel):
    """See `GriffinRecurrence` and `LocalAttention`. The scale of a norm is one plus its weight."""

    embedding = "model.embed_tokens.weight"
    last_norm = one_plus("model.final_norm.weight", "hidden")
    layers = "model.layers"

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    lru_width: Size | None = None
    conv1d_width: Size = 4
    attention_window_size: Size = 2048
    block_types: NonEmpty[Kind] = ("recurrent", "recurrent", "attention")
    logits_soft_cap: Positive = 30.0
    rms_norm_eps: Positive = 1e-6
    hidden_activation: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    attention_bias: Off = False
    rope_parameters: Mapping[str, Any] | None = None
    # In files without `rope_parameters`, from before transformers 5.
    rope_theta: Positive = 10000.0
    partial_rotary_factor: Share = 0.5
    tie_word_embeddings: bool = True

    def __post_init__(self):
        kind = self._rope.get("rope_type", "default")
        if kind != "default":
            raise UserError(f"config.json: rope_type must be 'default'; got {kind!r}")
        for name, size in (("hidden_size", self.hidden_size), ("lru_width", self._width)):
            if size % self.num_attention_heads:
                raise UserError(
                    f"config.json: num_attention_heads={self.num_attention_heads} must divide "
                    f"{name}={size}"
                )

    @property
    def _rope(self) -> Mapping[str, Any]:
        old = {
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.partial_rotary_factor,
        }
        return old | dict(self.rope_parameters or {})

    @property
    def _width(self) -> int:
        return self.lru_width or self.hidden_size

    @property
    def _kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    def sizes(self) -> dict[str, int]:
        heads = self.num_attention_heads
        head = self.hidden_size // heads
        return {
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "mlp": self.intermediate_size // 2,
            "width": self._width,
            "taps": self.conv1d_width,
            "heads": heads,
            "block": self._width // heads,
            "queries": heads * head,
            "keys": self._kv_heads * head,
        }

    def options(self) -> dict[str, Any]:
        makers = {"recurrent": self._recurrence, "attention": self._attention}
        return {
            "make_layer": [makers[kind] for kind in self.block_types],
            "depth": self.num_hidden_layers,
            "make_mixer": Identity,
            "make_ffn": partial(
                GatedFFN, hidden=self.intermediate_size // 2, activation=jax.nn.gelu
            ),
            "make_norm": partial(RMSNorm, epsilon=self.rms_norm_eps),
            # Rounded to bfloat16, as in the training.
            "embedding_scale": float(np.sqrt(self.hidden_size).astype(jnp.bfloat16)),
            "logit_cap": self.logits_soft_cap,
        }

    def _recurrence(self, key: PRNGKeyArray) -> GriffinRecurrence:
        return GriffinRecurrence(
            self.hidden_size,
            self._width,
            blocks=self.num_attention_heads,
            conv_width=self.conv1d_width,
            key=key,
        )

    def _attention(self, key: PRNGKeyArray) -> LocalAttention:
        return LocalAttention(
            self.hidden_size,
            self.num_attention_heads,
            self.attention_window_size,
            kv_heads=self._kv_heads,
            rotary=self._rope["partial_rotary_factor"],
            rotary_base=self._rope["rope_theta"],
            use_bias=True,
            key=key,
        )

    def block(self, depth: int) -> Mapping[str, Source]:
        kind = self.block_types[depth % len(self.block_types)]
        layer = _RECURRENCE if kind == "recurrent" else self._attention_sources()
        return {**_EVERY_BLOCK, **layer}

    def _attention_sources(self) -> Mapping[str, Source]:
        heads, kv_heads = self.num_attention_heads, self._kv_heads

        def projection(name: str, axes: str, *shape: int) -> Source:
            return Source(
                {f"temporal_block.{name}.weight": axes}, lambda weight: weight.reshape(shape)
            )

        return {
            "layer.query": projection("q_proj", "queries hidden", heads, -1, self.hidden_size),
            "layer.key": projection("k_proj", "keys hidden", kv_heads, -1, self.hidden_size),
            "layer.value": projection("v_proj", "keys hidden", kv_heads, -1, self.hidden_size),
            "layer.output": projection("o_proj", "hidden queries", self.hidden_size, heads, -1),
            "layer.bias": same("temporal_block.o_proj.bias", "hidden"),
        }

"""Mamba in `transformers`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from rnnscale._checks import Positive, Size
from rnnscale.interop._transformers_model import (
    Source,
    TransformersModel,
    same,
    taps,
)
from rnnscale.layers import RMSNorm
from rnnscale.models import Identity
from rnnscale.ssm import Mamba


@dataclass(frozen=True, kw_only=True)
class MambaForCausalLM(TransformersModel):
    """See `Mamba`."""

    embedding = "backbone.embeddings.weight"
    last_norm = same("backbone.norm_f.weight", "hidden")
    layers = "backbone.layers"
    old_names = {"backbone.embedding.weight": embedding}

    hidden_size: Size
    num_hidden_layers: Size
    state_size: Size
    use_bias: bool  # true by default in older versions
    expand: Size = 2
    conv_kernel: Size = 4
    time_step_rank: Size | Literal["auto"] = "auto"
    use_conv_bias: bool = True
    layer_norm_epsilon: Positive = 1e-5
    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = True

    def sizes(self) -> dict[str, int]:
        rank = self.time_step_rank
        if rank == "auto":
            rank = math.ceil(self.hidden_size / 16)
        return {
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "inner": self.expand * self.hidden_size,
            "taps": self.conv_kernel,
            "states": self.state_size,
            "rank": rank,
            "selected": rank + 2 * self.state_size,
        }

    def options(self) -> dict[str, Any]:
        make_layer = partial(
            Mamba,
            self.hidden_size,
            self.state_size,
            expand=self.expand,
            conv_width=self.conv_kernel,
            dt_rank=self.sizes()["rank"],
            use_bias=self.use_bias,
            use_conv_bias=self.use_conv_bias,
        )
        return {
            "make_layer": lambda key: make_layer(key=key),
            "depth": self.num_hidden_layers,
            "make_mixer": Identity,
            "make_norm": partial(RMSNorm, epsilon=self.layer_norm_epsilon),
        }

    def block(self, depth: int) -> Mapping[str, Source]:
        def halves(name: str, axes: str) -> Source:
            return Source({name: axes}, lambda tensor: tensor.reshape(2, -1, *tensor.shape[1:]))

        sources = {
            "norm.scale": same("norm.weight", "hidden"),
            "layer.in_proj": halves("mixer.in_proj.weight", "2*inner hidden"),
            "layer.conv.weight": taps("mixer.conv1d.weight", "inner taps"),
            "layer.x_proj": same("mixer.x_proj.weight", "selected inner"),
            "layer.dt_proj": same("mixer.dt_proj.weight", "inner rank"),
            "layer.dt_bias": same("mixer.dt_proj.bias", "inner"),
            "layer.a_log": same("mixer.A_log", "inner states"),
            "layer.d": same("mixer.D", "inner"),
            "layer.out_proj": same("mixer.out_proj.weight", "hidden inner"),
        }
        if self.use_bias:
            sources["layer.in_bias"] = halves("mixer.in_proj.bias", "2*inner")
            sources["layer.out_bias"] = same("mixer.out_proj.bias", "hidden")
        if self.use_conv_bias:
            sources["layer.conv.bias"] = same("mixer.conv1d.bias", "inner")
        return sources

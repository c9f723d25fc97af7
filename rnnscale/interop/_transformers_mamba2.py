"""Mamba-2 in `transformers`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from rnnscale._checks import NonNegative, Positive, Size
from rnnscale._errors import UserError
from rnnscale.interop._transformers_model import (
    Off,
    Source,
    TransformersModel,
    same,
)
from rnnscale.layers import RMSNorm
from rnnscale.models import Identity
from rnnscale.ssm import Mamba2


@dataclass(frozen=True, kw_only=True)
class Mamba2ForCausalLM(TransformersModel):
    """See `Mamba2`. Its norm is that of each group, as in transformers today and where the
    published models were trained; older versions of transformers have one for all channels."""

    embedding = "backbone.embeddings.weight"
    last_norm = same("backbone.norm_f.weight", "hidden")
    layers = "backbone.layers"
    old_names = {"backbone.embedding.weight": embedding}

    hidden_size: Size
    num_hidden_layers: Size
    state_size: Size
    num_heads: Size
    head_dim: Size
    n_groups: Size
    expand: Size = 2
    conv_kernel: Size = 4
    use_bias: Off = False
    use_conv_bias: bool = True
    time_step_limit: tuple[NonNegative, float] = (0.0, math.inf)
    layer_norm_epsilon: Positive = 1e-5
    hidden_act: Literal["silu"] = "silu"

    def __post_init__(self):
        inner = self.expand * self.hidden_size
        if self.num_heads * self.head_dim != inner or self.num_heads % self.n_groups:
            raise UserError(
                f"config.json: num_heads={self.num_heads} times head_dim={self.head_dim} must be "
                f"expand * hidden_size = {inner}, and n_groups={self.n_groups} must divide "
                "num_heads"
            )
        low, high = self.time_step_limit
        if low >= high:
            raise UserError(
                f"config.json: time_step_limit must be (low, high), low < high; got {(low, high)}"
            )

    def sizes(self) -> dict[str, int]:
        inner = self.expand * self.hidden_size
        channels = inner + 2 * self.n_groups * self.state_size
        return {
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "inner": inner,
            "channels": channels,
            "projected": inner + channels + self.num_heads,
            "taps": self.conv_kernel,
            "heads": self.num_heads,
        }

    def options(self) -> dict[str, Any]:
        make_layer = partial(
            Mamba2,
            self.hidden_size,
            self.state_size,
            head_dim=self.head_dim,
            groups=self.n_groups,
            expand=self.expand,
            conv_width=self.conv_kernel,
            dt_limit=self.time_step_limit,
            use_conv_bias=self.use_conv_bias,
            epsilon=self.layer_norm_epsilon,
        )
        return {
            "make_layer": lambda key: make_layer(key=key),
            "depth": self.num_hidden_layers,
            "make_mixer": Identity,
            "make_norm": partial(RMSNorm, epsilon=self.layer_norm_epsilon),
        }

    def block(self, depth: int) -> Mapping[str, Source]:
        heads = (self.num_heads, self.head_dim)
        maps = (2, self.n_groups, self.state_size)
        inner = self.expand * self.hidden_size

        def projection(rows: slice, *axes: int) -> Source:
            return Source(
                {"mixer.in_proj.weight": "projected hidden"},
                lambda weight: weight[rows].reshape(*axes, -1),
            )

        def convolution(channels: slice) -> dict[str, Source]:
            sources = {
                "weight": Source(
                    {"mixer.conv1d.weight": "channels 1 taps"},
                    lambda weight: weight[channels, 0, ::-1],
                )
            }
            if self.use_conv_bias:
                sources["bias"] = Source(
                    {"mixer.conv1d.bias": "channels"}, lambda bias: bias[channels]
                )
            return sources

        sources = {
            "norm.scale": same("norm.weight", "hidden"),
            "layer.zx_proj": projection(slice(2 * inner), 2, *heads),
            "layer.bc_proj": projection(slice(2 * inner, -self.num_heads), *maps),
            "layer.dt_proj": projection(slice(-self.num_heads, None), self.num_heads),
            "layer.dt_bias": same("mixer.dt_bias", "heads"),
            "layer.a_log": same("mixer.A_log", "heads"),
            "layer.d": same("mixer.D", "heads"),
            "layer.norm_scale": Source(
                {"mixer.norm.weight": "inner"}, lambda weight: weight.reshape(heads)
            ),
            "layer.out_proj": Source(
                {"mixer.out_proj.weight": "hidden inner"}, lambda weight: weight.reshape(-1, *heads)
            ),
        }
        for name, channels in (("conv", slice(inner)), ("conv_maps", slice(inner, None))):
            for field, source in convolution(channels).items():
                sources[f"layer.{name}.{field}"] = source
        return sources

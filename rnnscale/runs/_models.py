"""The table of models: what each name on the command line stands for, and which options it has.
A new cell or layer needs one line here. The table itself needs neither jax nor any class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from rnnscale import attention, cells, layers
from rnnscale._errors import UserError, as_user_error

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray

    from rnnscale._base import SequenceLayer


type BlockOption = Literal["half-glu", "plain", "swiglu", "geglu", "relu2"]


@dataclass(frozen=True)
class _Entry:
    """A cell or a layer.

    - `name`: the name of the model.
    - `reference`: the package of rnnscale that has its class, and the name of the class. The class
        is imported when it is needed.
    - `options`: the names of the options that a run may give.
    - `block`: the block around it, unless a run names another: that of its authors.
    """

    name: str
    reference: str
    options: tuple[str, ...] = ()
    block: BlockOption = field(default="half-glu", kw_only=True)

    @property
    def class_name(self) -> str:
        return self.reference.partition(":")[2]

    def check_options(self, given: Mapping[str, Any]) -> None:
        """**Raises:** `UserError` if a run may not give one of these options."""
        if unknown := given.keys() - set(self.options):
            raise UserError(
                f"{self.name} has no option {', '.join(sorted(unknown))}; its options are "
                f"{', '.join(self.options) or 'none'}"
            )

    def load(self) -> type[Any]:
        return resolve_name(f"rnnscale.{self.reference}")


@dataclass(frozen=True)
class CellEntry(_Entry):
    """A cell, made from the sizes of input and state.

    - `gain`: recurrent weights are constrained so that no state grows by more than this factor over
        a sequence; None for no constraint. See `indrnn_constraint`.
    """

    gain: float | None = None


@dataclass(frozen=True)
class LayerEntry(_Entry):
    """A sequence layer, made from `dim` and `state_dim`.

    - `make`: makes it from these, if the constructor of its class takes other sizes:
        `make(dim, state_dim, *, key, **options)`.
    """

    make: Callable[..., "SequenceLayer"] | None = None


def construct(
    entry: CellEntry | LayerEntry, *sizes: int, options: Mapping[str, Any], key: "PRNGKeyArray"
) -> Any:
    """The cell or layer of an entry, with the options of a run.

    **Raises:** `UserError` if the constructor refuses the value of an option.
    """
    with as_user_error():
        return constructor(entry)(*sizes, key=key, **options)


def constructor(entry: CellEntry | LayerEntry) -> Callable[..., Any]:
    """The function of sizes, `key` and options that makes the cell or layer."""
    if isinstance(entry, LayerEntry) and entry.make is not None:
        return entry.make
    return entry.load()


DEFAULT_HEADS = 4
"""The heads of a layer of `attention`, if a run does not give their number."""


def _rglru(dim: int, state_dim: int, *, blocks: int = 1, key: "PRNGKeyArray") -> "SequenceLayer":
    del state_dim  # RG-LRU has as many states as it is wide.
    return layers.RNNEncoder(cells.RGLRUCell(dim, blocks=blocks, key=key))


def _slstm(
    dim: int,
    state_dim: int,
    *,
    heads: int = DEFAULT_HEADS,
    conv_width: int | None = 4,
    position: float = 0.0,
    key: "PRNGKeyArray",
) -> "SequenceLayer":
    del state_dim  # sLSTM has as many units as it is wide.
    return layers.SLSTM(dim, heads, conv_width=conv_width, position=position, key=key)


def _up_projected_mlstm(
    dim: int,
    state_dim: int,
    *,
    heads: int = DEFAULT_HEADS,
    expand: int = 2,
    block_size: int = 4,
    conv_width: int = 4,
    depth: int = 1,
    key: "PRNGKeyArray",
) -> "SequenceLayer":
    del state_dim  # Keys are as wide as values, whose width follows from `expand`.
    return attention.UpProjectedMLSTM(
        dim, heads, expand=expand, block_size=block_size, conv_width=conv_width, depth=depth,
        key=key,
    )  # fmt: skip


def _local_attention(
    dim: int,
    state_dim: int,
    *,
    heads: int = DEFAULT_HEADS,
    kv_heads: int | None = None,
    window: int = 64,
    rotary: float = 1.0,
    rotary_base: float = 10_000.0,
    use_bias: bool = False,
    key: "PRNGKeyArray",
) -> "SequenceLayer":
    del state_dim  # A window of keys and values is the state.
    return attention.LocalAttention(
        dim, heads, window, kv_heads=kv_heads, rotary=rotary, rotary_base=rotary_base,
        use_bias=use_bias, key=key,
    )  # fmt: skip


def _with_heads(name: str) -> Callable[..., "SequenceLayer"]:
    """Makes a layer of `attention`, the keys of whose heads have `state_dim` features together."""

    def make(
        dim: int, state_dim: int, *, heads: int = DEFAULT_HEADS, key: "PRNGKeyArray", **options: Any
    ) -> "SequenceLayer":
        if dim % heads or state_dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim} and state_dim={state_dim}")
        layer = getattr(attention, name)
        return layer(dim, heads, key_dim=state_dim // heads, key=key, **options)

    return make


_S5 = (
    "blocks", "dt_min", "dt_max", "discretisation", "step_rescale", "clip_eigenvalues", "c_init",
)  # fmt: skip
_DELTA_RULE = ("heads", "value_dim", "conv_width", "gate", "beta_max")
_GLA = ("heads", "value_dim", "rank", "temperature")
_MLSTM = ("heads", "value_dim", "gate_cap", "epsilon", "depth")
_RWKV7 = ("heads", "decay_rank", "rate_rank", "gate_rank")
_DAMPED_LINOSS = ("r_min", "r_max", "theta_min", "theta_max", "step_std")
_MAMBA = ("expand", "conv_width", "dt_rank", "dt_min", "dt_max", "use_bias", "use_conv_bias")
_MAMBA2 = (
    "head_dim", "groups", "norm_groups", "expand", "conv_width", "dt_min", "dt_max", "dt_limit",
    "use_conv_bias", "epsilon",
)  # fmt: skip
_ATTENTION = ("heads", "kv_heads", "window", "rotary", "rotary_base", "use_bias")
_ANTISYMMETRIC = ("epsilon", "gamma", "recurrent_std")
_LIPSCHITZ = ("epsilon", "beta", "gamma", "init_std", "method")

MODELS: Mapping[str, CellEntry | LayerEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            LayerEntry("s5", "ssm:S5", _S5),
            LayerEntry("s5-bidirectional", "ssm:BidirectionalS5", _S5),
            LayerEntry("s4d", "ssm:S4D", ("init", "dt_min", "dt_max", "discretisation")),
            LayerEntry("lru", "ssm:LRU", ("r_min", "r_max", "max_phase")),
            LayerEntry("linoss", "ssm:LinOSS", ("discretisation",)),
            LayerEntry("d-linoss", "ssm:DampedLinOSS", _DAMPED_LINOSS),
            LayerEntry("mamba", "ssm:Mamba", _MAMBA, block="plain"),
            LayerEntry("mamba2", "ssm:Mamba2", _MAMBA2, block="plain"),
            LayerEntry("rglru", "cells:RGLRUCell", ("blocks",), _rglru),
            LayerEntry(
                "linear-attention",
                "attention:LinearAttention",
                ("heads", "value_dim"),
                _with_heads("LinearAttention"),
            ),
            LayerEntry(
                "deltanet",
                "attention:DeltaNet",
                _DELTA_RULE,
                _with_heads("DeltaNet"),
                block="swiglu",
            ),
            LayerEntry(
                "gated-deltanet",
                "attention:GatedDeltaNet",
                _DELTA_RULE,
                _with_heads("GatedDeltaNet"),
                block="swiglu",
            ),
            LayerEntry(
                "deltaproduct",
                "attention:DeltaProduct",
                (*_DELTA_RULE, "substeps", "decay"),
                _with_heads("DeltaProduct"),
                block="swiglu",
            ),
            LayerEntry(
                "gla",
                "attention:GatedLinearAttention",
                _GLA,
                _with_heads("GatedLinearAttention"),
                block="swiglu",
            ),
            LayerEntry("mlstm", "attention:MLSTM", _MLSTM, _with_heads("MLSTM"), block="swiglu"),
            LayerEntry("rwkv7", "attention:RWKV7", _RWKV7, _with_heads("RWKV7"), block="relu2"),
            LayerEntry(
                "attention", "attention:LocalAttention", _ATTENTION, _local_attention, block="geglu"
            ),
            LayerEntry(
                "griffin", "layers:GriffinRecurrence", ("blocks", "conv_width"), block="geglu"
            ),
            LayerEntry(
                "slstm", "layers:SLSTM", ("heads", "conv_width", "position"), _slstm, block="geglu"
            ),
            LayerEntry(
                "mlstm-up-projected",
                "attention:UpProjectedMLSTM",
                ("heads", "expand", "block_size", "conv_width", "depth"),
                _up_projected_mlstm,
                block="plain",
            ),
            CellEntry("elman", "cells:ElmanRNNCell"),
            CellEntry("leaky-elman", "cells:LeakyElmanCell", ("leak",)),
            CellEntry("wilson-cowan", "cells:WilsonCowanCell", ("rate",)),
            CellEntry("indrnn", "cells:IndRNNCell", ("recurrent_range", "input_std"), gain=2.0),
            CellEntry("lstm", "cells:LongShortTermMemoryCell", ("t_max",)),
            CellEntry("gru", "cells:GatedRecurrentUnitCell", ("t_max",)),
            CellEntry("gru-cho", "cells:ChoGatedRecurrentUnitCell", ("t_max",)),
            CellEntry("mgu", "cells:MinimalGatedUnitCell", ("reset_gate", "t_max")),
            CellEntry("antisymmetric", "cells:AntiSymmetricRNNCell", _ANTISYMMETRIC),
            CellEntry("antisymmetric-gated", "cells:GatedAntiSymmetricRNNCell", _ANTISYMMETRIC),
            CellEntry("clockwork", "cells:ClockWorkRNNCell", ("periods", "sizes")),
            CellEntry("lipschitz", "cells:LipschitzRNNCell", _LIPSCHITZ),
            CellEntry("lipschitz-gated", "cells:GatedLipschitzRNNCell", _LIPSCHITZ),
            CellEntry("urnn", "cells:UnitaryEvolutionRNNCell"),
            CellEntry("cornn", "cells:CoupledOscillatoryRNNCell", ("dt", "gamma", "epsilon")),
            CellEntry(
                "cornn-heterogeneous",
                "cells:HeterogeneousOscillatoryRNNCell",
                ("dt", "gamma", "epsilon"),
            ),
            CellEntry("unicornn", "cells:UnICORNNCell", ("dt", "alpha")),
            CellEntry("exprnn", "cells:ExpRNNCell", ("init",)),
            CellEntry("nnrnn", "cells:NonNormalRNNCell", ("init",)),
            CellEntry("paragru", "cells:ParaGRUCell", ("heads", "t_max")),
            CellEntry("paralstm", "cells:ParaLSTMCell", ("heads", "t_max")),
            CellEntry("lrcssm", "cells:LrcSSMCell", ("form", "dt")),
            CellEntry("mingru", "cells:MinGRUCell", ("t_max",)),
            CellEntry("minlstm", "cells:MinLSTMCell", ("t_max",)),
            CellEntry(
                "ron",
                "cells:RandomOscillatorsCell",
                ("dt", "gamma", "epsilon", "spectral_radius", "input_scaling"),
            ),
        )
    }
)

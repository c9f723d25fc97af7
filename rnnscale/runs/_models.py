"""The table of models: what each name on the command line stands for, and which options it has.
A new cell or layer needs one line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jaxtyping import PRNGKeyArray

from rnnscale import cells
from rnnscale._base import SequenceLayer
from rnnscale._errors import UserError, as_user_error
from rnnscale.cells import Cell
from rnnscale.layers import RNNEncoder
from rnnscale.ssm import LRU, S5, BidirectionalS5, LinearAttention


@dataclass(frozen=True)
class CellEntry:
    """A cell.

    - `name`: the name of the model.
    - `make`: `make(idim, hdim, *, key, **options)`.
    - `options`: the names of the options that a run may give.
    - `gain`: recurrent weights are constrained so that no state grows by more than this factor over
        a sequence; None for no constraint. See `indrnn_constraint`.
    """

    name: str
    make: Callable[..., Cell]
    options: tuple[str, ...] = ()
    gain: float | None = None


@dataclass(frozen=True)
class LayerEntry:
    """A sequence layer.

    - `name`: the name of the model.
    - `make`: `make(dim, state_dim, *, key, **options)`.
    - `options`: the names of the options that a run may give.
    """

    name: str
    make: Callable[..., SequenceLayer]
    options: tuple[str, ...] = ()


def construct(
    entry: CellEntry | LayerEntry,
    *sizes: int,
    options: Mapping[str, Any],
    key: PRNGKeyArray,
) -> Any:
    """The cell or layer of an entry, with the options of a run.

    **Raises:** `UserError` if the entry has no such option, or the constructor refuses its value.
    """
    if unknown := options.keys() - set(entry.options):
        raise UserError(
            f"{entry.name} has no option {', '.join(sorted(unknown))}; its options are "
            f"{', '.join(entry.options) or 'none'}"
        )
    with as_user_error():
        return entry.make(*sizes, key=key, **options)


def _rglru(dim: int, state_dim: int, *, blocks: int = 1, key: PRNGKeyArray) -> SequenceLayer:
    del state_dim  # RG-LRU has as many states as it is wide.
    return RNNEncoder(cells.RGLRUCell(dim, blocks=blocks, key=key))


def _linear_attention(
    dim: int, state_dim: int, *, heads: int = 4, key: PRNGKeyArray
) -> SequenceLayer:
    if dim % heads or state_dim % heads:
        raise ValueError(
            f"linear-attention: heads={heads} must divide dim={dim} and state_dim={state_dim}"
        )
    return LinearAttention(dim, heads, key_dim=state_dim // heads, key=key)


_S5 = (
    "blocks", "dt_min", "dt_max", "discretisation", "step_rescale", "clip_eigenvalues", "c_init",
)  # fmt: skip
_ANTISYMMETRIC = ("epsilon", "gamma", "recurrent_std")
_LIPSCHITZ = ("epsilon", "beta", "gamma", "init_std", "method")

MODELS: Mapping[str, CellEntry | LayerEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            LayerEntry("s5", S5, _S5),
            LayerEntry("s5-bidirectional", BidirectionalS5, _S5),
            LayerEntry("lru", LRU, ("r_min", "r_max", "max_phase")),
            LayerEntry("rglru", _rglru, ("blocks",)),
            LayerEntry("linear-attention", _linear_attention, ("heads",)),
            CellEntry("elman", cells.ElmanRNNCell),
            CellEntry("leaky-elman", cells.LeakyElmanCell, ("leak",)),
            CellEntry("wilson-cowan", cells.WilsonCowanCell, ("rate",)),
            CellEntry("indrnn", cells.IndRNNCell, ("recurrent_range", "input_std"), gain=2.0),
            CellEntry("lstm", cells.LongShortTermMemoryCell),
            CellEntry("gru", cells.GatedRecurrentUnitCell),
            CellEntry("gru-cho", cells.ChoGatedRecurrentUnitCell),
            CellEntry("antisymmetric", cells.AntiSymmetricRNNCell, _ANTISYMMETRIC),
            CellEntry("antisymmetric-gated", cells.GatedAntiSymmetricRNNCell, _ANTISYMMETRIC),
            CellEntry("clockwork", cells.ClockWorkRNNCell, ("periods",)),
            CellEntry("lipschitz", cells.LipschitzRNNCell, _LIPSCHITZ),
            CellEntry("lipschitz-gated", cells.GatedLipschitzRNNCell, _LIPSCHITZ),
            CellEntry("urnn", cells.UnitaryEvolutionRNNCell),
            CellEntry("cornn", cells.CoupledOscillatoryRNNCell, ("dt", "gamma", "epsilon")),
            CellEntry("exprnn", cells.ExpRNNCell, ("init",)),
            CellEntry("nnrnn", cells.NonNormalRNNCell, ("init",)),
            CellEntry("mingru", cells.MinGRUCell),
            CellEntry("minlstm", cells.MinLSTMCell),
            CellEntry(
                "ron",
                cells.RandomOscillatorsCell,
                ("dt", "gamma", "epsilon", "spectral_radius", "input_scaling"),
            ),
        )
    }
)

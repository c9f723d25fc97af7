"""State-space models and other layers that are linear in their state."""

from rnnscale.ssm._base import DiagonalSSM as DiagonalSSM
from rnnscale.ssm._bidirectional_s5 import BidirectionalS5 as BidirectionalS5
from rnnscale.ssm._hippo import hippo_legs as hippo_legs, hippo_normal as hippo_normal
from rnnscale.ssm._linear_attention import LinearAttention as LinearAttention
from rnnscale.ssm._lru import LRU as LRU
from rnnscale.ssm._s5 import S5 as S5

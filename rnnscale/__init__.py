"""Recurrent networks and state-space models at scale, in JAX and Equinox."""

from rnnscale._fields import parameter as parameter
from rnnscale._fields import trainable as trainable
from rnnscale.ssm import LRU as LRU
from rnnscale.ssm import S5 as S5
from rnnscale.ssm import BidirectionalS5 as BidirectionalS5

"""Recurrent networks and state-space models at scale, in JAX and Equinox."""

from rnnscale._fields import parameter as parameter, trainable as trainable
from rnnscale.ssm import LRU as LRU, S5 as S5, BidirectionalS5 as BidirectionalS5

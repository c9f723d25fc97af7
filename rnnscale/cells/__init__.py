"""Recurrent cells, and the loop that runs them over time."""

from rnnscale.cells._base import Cell as Cell
from rnnscale.cells._elman import ElmanRNNCell as ElmanRNNCell
from rnnscale.cells._lstm import LongShortTermMemoryCell as LongShortTermMemoryCell
from rnnscale.cells._time_loop import time_loop as time_loop

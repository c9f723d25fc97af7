"""The linear recurrence whose coefficients are small blocks, one for each channel."""

from ._api import (
    BLOCK as BLOCK,
    Blocks as Blocks,
    Planes as Planes,
    PlaneStates as PlaneStates,
    block_scan as block_scan,
)

"""A recurrent network whose state enters each step through one matrix, which stays on chip."""

from ._api import (
    PERSISTENT as PERSISTENT,
    persistent_rnn as persistent_rnn,
)

"""The names of optimisers and schedules, apart from their files so that options can be checked
without importing jax."""

from typing import Literal

type Optimiser = Literal["adamw", "lion", "muon", "nadamw", "sgd"]
type Schedule = Literal["cosine", "constant", "linear", "wsd"]

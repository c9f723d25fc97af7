"""The recurrence of matrix states H_t = (I - k_t e_t^T) D_t H_{t-1} + k_t v_t^T."""

from ._api import (
    ATTENTION as ATTENTION,
    linear_attention as linear_attention,
)

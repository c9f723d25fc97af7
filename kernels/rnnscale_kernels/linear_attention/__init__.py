"""H_t = (I - k_t e_t^T) D_t H_{t-1} + k_t v_t^T, y_t = H_t^T q_t: recurrences with matrix states."""

from ._api import linear_attention as linear_attention

"""`linear_attention` on the ambient mesh."""

from rnnscale_kernels import linear_attention as linear_attention

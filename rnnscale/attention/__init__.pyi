from ._linear_attention import LinearAttention as LinearAttention

"""What makes XLA fast, without any method: convolutions, pooling, sums, derivatives written by hand, platforms.

Public: `platforms`, settings of compiler and memory; `conv` and `pool`, functions of JAX and Flax made faster.
"""

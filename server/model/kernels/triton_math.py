"""What Triton kernels share: products and activations, all in float32."""

from __future__ import annotations

import triton
import triton.language as tl

IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# Activations; anything else is the identity.
RELU = tl.constexpr(1)
GELU = tl.constexpr(2)
GELU_TANH = tl.constexpr(3)
SILU = tl.constexpr(4)
TANH = tl.constexpr(5)
SIGMOID = tl.constexpr(6)
LEAKY_RELU = tl.constexpr(7)


@triton.jit
def _sigmoid(x):
    """Without overflow on either side."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1.0 + small)


@triton.jit
def _tanh(x):
    small = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x < 0, small - 1.0, 1.0 - small) / (1.0 + small)


@triton.jit
def activated(x, activation):
    """x of any shape, float32; `activation` is a scalar, the same for the whole program."""
    if activation == RELU:
        x = tl.where(x < 0, 0.0, x)
    elif activation == GELU:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif activation == GELU_TANH:
        x = 0.5 * x * (1.0 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif activation == SILU:
        x = x * _sigmoid(x)
    elif activation == TANH:
        x = _tanh(x)
    elif activation == SIGMOID:
        x = _sigmoid(x)
    elif activation == LEAKY_RELU:
        x = tl.where(x < 0, 0.01 * x, x)
    return x


@triton.jit
def dot(a, b, total):
    """total + a @ b; a [M, K] and b [K, N] of one dtype, total [M, N] float32.

    The interpreter knows no bfloat16: it gets float32, in which products of 16-bit floats are exact.
    """
    if IS_INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")

"""Depthwise convolution with a second lowering for CPUs.

XLA's CPU backend has no fast grouped convolution; there, the convolution and its gradients are sums
of shifted products. Both lowerings give the same values and gradients up to floating-point error.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# The padding before and after the rows and the columns.
Zeros = tuple[tuple[int, int], tuple[int, int]]


def grouped(x: jax.Array, kernel: jax.Array, stride: int, zeros: Zeros) -> jax.Array:
    """The standard lowering: one convolution with a group for each channel."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=zeros,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted(x: jax.Array, kernel: jax.Array, stride: int, zeros: Zeros) -> jax.Array:
    """The sum of shifted copies of x [B, H, W, C], each times a row of the kernel [k, k, 1, C]."""
    rows = kernel.reshape(-1, kernel.shape[-1])
    shifts = taps(x, kernel.shape[:2], stride, zeros)
    return functools.reduce(jnp.add, (tap * row for tap, row in zip(shifts, rows, strict=True)))


def taps(x: jax.Array, window: tuple[int, ...], stride: int, zeros: Zeros) -> list[jax.Array]:
    """For each element of a window, the inputs [B, H', W', C] at all positions of the window."""
    x = jnp.pad(x, ((0, 0), *zeros, (0, 0)))
    # Without this XLA computes x twice, for taps with and without padding.
    x = lax.optimization_barrier(x)
    batch, *sizes, channels = x.shape
    # The distance between the first and the last position of the window.
    row, column = ((n - k) // stride * stride for n, k in zip(sizes, window, strict=True))
    return [
        # Indexing would become a gather if the batch size is symbolic, as in export.
        lax.slice(
            x,
            (0, i, j, 0),
            (batch, i + row + 1, j + column + 1, channels),
            (1, stride, stride, 1),
        )
        for i in range(window[0])
        for j in range(window[1])
    ]


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, zeros: Zeros
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return shifted(x, kernel, stride, zeros), (x, kernel)


def _backward(
    stride: int, zeros: Zeros, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return (
        _input_gradient(x.shape, kernel, stride, zeros, grad),
        _kernel_gradient(x, kernel, stride, zeros, grad),
    )


shifted.defvjp(_forward, _backward)


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, stride: int, zeros: Zeros, grad: jax.Array
) -> jax.Array:
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    shifts = taps(x, kernel.shape[:2], stride, zeros)
    products = [tap.astype(dtype) * grad.astype(dtype) for tap in shifts]

    def add(total: list[jax.Array], term: list[jax.Array]) -> list[jax.Array]:
        return [a + b for a, b in zip(total, term, strict=True)]

    # One reduction of all products is one pass over x and grad and stores no product. It sums over
    # each image first, because images run in parallel and short sums have smaller errors.
    sums = lax.reduce(products, [jnp.zeros((), dtype)] * len(products), add, (1, 2))
    return jnp.stack([total.sum(0) for total in sums]).reshape(kernel.shape).astype(kernel.dtype)


def _input_gradient(
    shape: tuple[int, ...], kernel: jax.Array, stride: int, zeros: Zeros, grad: jax.Array
) -> jax.Array:
    """Convolution of `grad` with the reversed kernel, separately for each phase of the stride.

    Position q * stride + a of the padded input is under element a + stride * m of the window when
    the window is at position q - m.
    """
    counts = [-(-(n + sum(z)) // stride) for n, z in zip(shape[1:3], zeros, strict=True)]

    def phase(a: int, b: int) -> jax.Array:
        part = kernel[a::stride, b::stride][::-1, ::-1]
        around = [
            (taps - 1, count - n)
            for taps, count, n in zip(part.shape[:2], counts, grad.shape[1:3], strict=True)
        ]
        return shifted(grad, part, 1, (around[0], around[1]))

    if stride == 1:
        padded = phase(0, 0)
    else:
        rows = [jnp.stack([phase(a, b) for b in range(stride)], axis=3) for a in range(stride)]
        padded = jnp.stack(rows, axis=2).reshape(
            shape[0], counts[0] * stride, counts[1] * stride, shape[3]
        )
    for axis in (1, 2):
        low = zeros[axis - 1][0]
        padded = lax.slice_in_dim(padded, low, low + shape[axis], axis=axis)
    return padded

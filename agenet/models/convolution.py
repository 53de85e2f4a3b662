"""Convolution, with a second lowering for CPUs: products of large matrices where they are faster.

`jax.lax.platform_dependent` chooses when the program is compiled. Both lowerings give the same
values and gradients to rounding; GPU and TPU keep the standard one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from agenet.models import depthwise
from agenet.models.depthwise import Zeros, taps

Padding = int | Literal["same"]
Lowering = Literal["auto", "grouped", "shifted"]
KernelGradient = Callable[[jax.Array, tuple[int, ...], int, Zeros, jax.Array], jax.Array]


def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolution of [B, H, W, C] with [k, k, C, F], both of one type.

    `padding` is the number of zeros on every side, or "same": as many as TensorFlow adds, the odd
    one after the picture.
    """
    size, _, channels, features = kernel.shape
    zeros = zeros_around(x.shape, size, stride, padding)
    standard = functools.partial(_standard, stride=stride, zeros=zeros)
    # The bounds are measured: beyond them XLA's own convolution is as fast or faster. The pixels
    # of a pointwise convolution are its patches; else patches cost little memory only where they
    # are smaller than what is made of them, and in a gradient where pictures are in colours.
    if size == 1 or size * size * channels <= features:
        on_cpu = functools.partial(_unfolded, stride=stride, zeros=zeros)
    elif channels <= 4:
        on_cpu = functools.partial(_with_kernel_gradient, _gradient_of_patches, stride, zeros)
    elif channels >= 128:
        on_cpu = functools.partial(_with_kernel_gradient, _gradient_of_taps, stride, zeros)
    else:
        return standard(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=standard)


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, lowering: Lowering = "auto"
) -> jax.Array:
    """Convolution of each channel of [B, H, W, C] with its own filter of [k, k, 1, C].

    `lowering` is "grouped" (one grouped convolution), "shifted" (a sum of shifted products, for
    XLA's CPU backend has no fast grouped convolution) or "auto": shifted on CPUs.
    """
    zeros = zeros_around(x.shape, kernel.shape[0], stride, padding)
    grouped = functools.partial(depthwise.grouped, stride=stride, zeros=zeros)

    def shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return depthwise.shifted(x, kernel, stride, zeros)

    if lowering == "auto":
        return lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)
    return grouped(x, kernel) if lowering == "grouped" else shifted(x, kernel)


def zeros_around(shape: Sequence[int], size: int, stride: int, padding: Padding) -> Zeros:
    """Zeros before and after the rows and the columns of [B, H, W, C]."""
    if padding != "same":
        return (padding, padding), (padding, padding)
    rows, columns = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in shape[1:3])
    return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)


def _standard(x: jax.Array, kernel: jax.Array, stride: int, zeros: Zeros) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=zeros,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _unfolded(x: jax.Array, kernel: jax.Array, stride: int, zeros: Zeros) -> jax.Array:
    """One product of a matrix of patches, which for a kernel of one pixel are the pixels."""
    patches = _unfold(x, kernel.shape[:2], stride, zeros)
    # Matrices of two dimensions: of more, XLA is slow at the gradients.
    product = _rows(patches) @ kernel.reshape(-1, kernel.shape[-1])
    return product.reshape(*patches.shape[:-1], -1)


def _unfold(x: jax.Array, window: tuple[int, ...], stride: int, zeros: Zeros) -> jax.Array:
    """[B, H, W, C] to patches [B, H', W', k * k * C], in the order of a kernel's axes."""
    x = jnp.pad(x, ((0, 0), *zeros, (0, 0)))
    for axis, size in ((2, window[1]), (1, window[0])):
        length = (x.shape[axis] - size) // stride * stride + 1
        taps = [lax.slice_in_dim(x, i, i + length, stride, axis) for i in range(size)]
        x = jnp.concatenate(taps, axis=-1)
    return x


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _with_kernel_gradient(
    kernel_gradient: KernelGradient, stride: int, zeros: Zeros, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    return _standard(x, kernel, stride, zeros)


def _forward(
    kernel_gradient: KernelGradient, stride: int, zeros: Zeros, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _standard(x, kernel, stride, zeros), (x, kernel)


def _backward(
    kernel_gradient: KernelGradient,
    stride: int,
    zeros: Zeros,
    residuals: tuple[jax.Array, jax.Array],
    grad: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    transposed = jax.linear_transpose(lambda x: _standard(x, kernel, stride, zeros), x)
    products = kernel_gradient(x, kernel.shape[:2], stride, zeros, grad)
    return transposed(grad)[0], products.reshape(kernel.shape)


_with_kernel_gradient.defvjp(_forward, _backward)


def _gradient_of_patches(
    x: jax.Array, window: tuple[int, ...], stride: int, zeros: Zeros, grad: jax.Array
) -> jax.Array:
    """One product, for pictures with few channels."""
    return _rows(_unfold(x, window, stride, zeros)).T @ _rows(grad)


def _gradient_of_taps(
    x: jax.Array, window: tuple[int, ...], stride: int, zeros: Zeros, grad: jax.Array
) -> jax.Array:
    """One product per element of the window, for so many channels that each is large."""
    seen = taps(x, window, stride, zeros)
    return jnp.stack([_rows(tap).T @ _rows(grad) for tap in seen])

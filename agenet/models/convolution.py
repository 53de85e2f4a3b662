"""Convolution with a second lowering for CPUs: matrix products, where they are faster.

`jax.lax.platform_dependent` chooses at compile time; GPU and TPU use the standard lowering. Both
give the same values and gradients up to floating-point error.
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
    """Convolution of x [B, H, W, C] with a kernel [k, k, C, F] of the same dtype.

    `padding` is the number of zeros on each side, or "same" for TensorFlow's SAME padding, which
    puts an odd zero at the end.
    """
    size, _, channels, features = kernel.shape
    zeros = zeros_around(x.shape, size, stride, padding)
    standard = functools.partial(_standard, stride=stride, zeros=zeros)
    # The bounds were measured: elsewhere XLA's own convolution is as fast or faster. In pointwise
    # convolutions the patches are the input itself; in others they are affordable where they are
    # smaller than the output and, in the kernel's gradient, where the input has few channels or
    # far fewer than the output, as in fused blocks.
    if size == 1 or size * size * channels <= features:
        on_cpu = functools.partial(_unfolded, stride=stride, zeros=zeros)
    elif channels >= 128:
        on_cpu = functools.partial(_with_kernel_gradient, _gradient_of_taps, stride, zeros)
    elif channels <= 4 or features >= 4 * channels:
        on_cpu = functools.partial(_with_kernel_gradient, _gradient_of_patches, stride, zeros)
    else:
        return standard(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=standard)


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, lowering: Lowering = "auto"
) -> jax.Array:
    """Convolution of each channel of x [B, H, W, C] with its own filter, kernel [k, k, 1, C].

    `lowering` is "grouped" (one grouped convolution), "shifted" (a sum of shifted products, because
    XLA's CPU backend has no fast grouped convolution) or "auto" (shifted on CPUs only).
    """
    zeros = zeros_around(x.shape, kernel.shape[0], stride, padding)
    grouped = functools.partial(depthwise.grouped, stride=stride, zeros=zeros)

    def shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return depthwise.shifted(x, kernel, stride, zeros)

    if lowering == "auto":
        return lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)
    return grouped(x, kernel) if lowering == "grouped" else shifted(x, kernel)


def zeros_around(shape: Sequence[int], size: int, stride: int, padding: Padding) -> Zeros:
    """The padding before and after the rows and the columns of an array [B, H, W, C]."""
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
    """Convolution as one product of the matrix of patches with the kernel."""
    patches = _unfold(x, kernel.shape[:2], stride, zeros)
    # With more than two dimensions XLA's gradients are slow.
    product = _rows(patches) @ kernel.reshape(-1, kernel.shape[-1])
    return product.reshape(*patches.shape[:-1], -1)


def _unfold(x: jax.Array, window: tuple[int, ...], stride: int, zeros: Zeros) -> jax.Array:
    """Patches [B, H', W', k * k * C] of x [B, H, W, C], in the order of the kernel's axes."""
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
    """The kernel's gradient as one product of patches, for few input channels."""
    return _rows(_unfold(x, window, stride, zeros)).T @ _rows(grad)


def _gradient_of_taps(
    x: jax.Array, window: tuple[int, ...], stride: int, zeros: Zeros, grad: jax.Array
) -> jax.Array:
    """The kernel's gradient as one product for each element of the window, for many channels."""
    shifts = taps(x, window, stride, zeros)
    return jnp.stack([_rows(tap).T @ _rows(grad) for tap in shifts])

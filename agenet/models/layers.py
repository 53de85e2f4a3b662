"""Layers that the networks share.

Where XLA's CPU backend is slow at the standard lowering, a function carries a second one for it
and `jax.lax.platform_dependent` chooses when the program is compiled. Both give the same values
and gradients; GPU and TPU keep the standard lowering.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike


def fan_in_uniform(fan_in: int) -> Initializer:
    """Uniform in +-1/sqrt(fan_in): PyTorch's default for kernel and bias of Conv and Linear."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32, out_sharding=None: jax.random.uniform(
        key, shape, dtype, -bound, bound, out_sharding=out_sharding
    )


class Conv(nn.Module):
    """Square convolution, [B, H, W, C] to [B, H', W', features], initialised as PyTorch does."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, channels = self.kernel_size, x.shape[-1]
        init = fan_in_uniform(k * k * channels)
        kernel = self.param("kernel", init, (k, k, channels, self.features))
        bias = self.param("bias", init, (self.features,))
        y = conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        return y + bias.astype(self.dtype)


class Dense(nn.Module):
    """Affine map of the last axis, [..., C] to [..., features], initialised as PyTorch does."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = fan_in_uniform(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolution of [B, H, W, C] with [k, k, C, F], `padding` zeros on every side."""
    return _conv(x, kernel, stride, padding)


def _conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _conv_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    size = kernel.shape[0]
    plain = functools.partial(_conv, stride=stride, padding=padding)

    def standard(x: jax.Array, grad: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(grad)[0]

    def unfolded(x: jax.Array, grad: jax.Array) -> jax.Array:
        patches = _unfold(x, size, stride, padding, grad.shape[1:3])
        batch = (0, 1, 2)
        # [F, k * k * C]: on CPUs the larger factor is better off on the right.
        product = lax.dot_general(grad, patches, ((batch, batch), ((), ())))
        return product.T.reshape(kernel.shape)

    # Patches hold each value (size / stride) ** 2 times: past about ten times, building them
    # costs more than one large matrix product saves.
    if size <= 3 * stride:
        grad_kernel = lax.platform_dependent(x, grad, cpu=unfolded, default=standard)
    else:
        grad_kernel = standard(x, grad)
    return jax.linear_transpose(lambda x: plain(x, kernel), x)(grad)[0], grad_kernel


conv.defvjp(_conv_forward, _conv_backward)


def _unfold(
    x: jax.Array, size: int, stride: int, padding: int, out_shape: tuple[int, ...]
) -> jax.Array:
    """[B, H, W, C] to patches [B, H', W', k * k * C], in the order of a kernel's axes."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for axis, out in ((2, out_shape[1]), (1, out_shape[0])):
        length = (out - 1) * stride + 1
        taps = [lax.slice_in_dim(x, i, i + length, stride, axis) for i in range(size)]
        x = jnp.concatenate(taps, axis=-1)
    return x


def max_pool(x: jax.Array) -> jax.Array:
    """Maxima of 3 x 3 windows, stride 2, padding 1: [B, H, W, C] to [B, ceil(H/2), ceil(W/2), C].

    Of equal maxima the first in reading order takes the gradient, as in PyTorch. On CPUs the
    gradient of XLA's reduce_window, a select-and-scatter, takes six times as long.
    """

    def standard(x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    def separable(x: jax.Array) -> jax.Array:
        return _max_of_three(_max_of_three(x, 2), 1)

    return lax.platform_dependent(x, cpu=separable, default=standard)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_three(x: jax.Array, axis: int) -> jax.Array:
    """Largest of x[2i - 1], x[2i], x[2i + 1] along `axis`."""
    left, centre, right = _neighbours(x, axis)
    return jnp.maximum(jnp.maximum(left, centre), right)


def _max_of_three_forward(x: jax.Array, axis: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _max_of_three(x, axis)
    return y, (x, y)


def _max_of_three_backward(
    axis: int, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array]:
    x, y = residuals
    left, centre, _ = _neighbours(x, axis)
    from_left = left == y
    from_centre = ~from_left & (centre == y)
    zero = jnp.zeros_like(grad)
    even = jnp.where(from_centre, grad, zero)
    odd = jnp.where(from_left | from_centre, zero, grad)
    odd += _pad(jnp.where(from_left, grad, zero), axis, -1, 1, 0)
    pairs = jnp.stack([even, odd], axis + 1).reshape(*y.shape[:axis], -1, *y.shape[axis + 1 :])
    return (lax.slice_in_dim(pairs, 0, x.shape[axis], axis=axis),)


_max_of_three.defvjp(_max_of_three_forward, _max_of_three_backward)


def _neighbours(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x[2i - 1], x[2i] and x[2i + 1] along `axis`, -inf outside."""
    pairs = _pad(x, axis, 0, x.shape[axis] % 2, -jnp.inf)
    pairs = pairs.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return _pad(odd, axis, 1, -1, -jnp.inf), even, odd


def _pad(x: jax.Array, axis: int, low: int, high: int, value: float) -> jax.Array:
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (low, high, 0)
    return lax.pad(x, jnp.asarray(value, x.dtype), widths)


def local_response_norm(x: jax.Array) -> jax.Array:
    """Local response normalisation over five channels, [B, H, W, C] to the same shape.

    x / (1 + 1e-4 / 5 * sum of squares over the five nearest channels) ** 0.75: Krizhevsky et al.
    2012, section 3.3, with alpha divided by the window's size as `torch.nn.LocalResponseNorm(5)`.
    """
    # A product with a banded matrix is faster than a windowed sum, gradient included. HIGHEST,
    # because TPUs would round its factors to bfloat16.
    channel = np.arange(x.shape[-1])
    window = jnp.asarray(abs(channel[:, None] - channel) <= 2, x.dtype)
    total = jnp.matmul(jnp.square(x), window, precision=lax.Precision.HIGHEST)
    # d ** -0.75 without the general power.
    root = lax.rsqrt(1 + 1e-4 / 5 * total)
    return x * (root * jnp.sqrt(root))

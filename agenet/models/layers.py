"""Layers that the networks share: convolutions, batch normalisation, dense layers, pooling.

Max-pooling, like the convolutions of `agenet.models.convolution`, has a second lowering for CPUs,
where XLA's standard one is slow; `jax.lax.platform_dependent` chooses at compile time. Both give
the same values and gradients.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from agenet.models.convolution import Padding, conv, depthwise_conv


def fan_in_uniform(fan_in: int) -> Initializer:
    """Uniform in +-1/sqrt(fan_in): PyTorch's default for kernels and biases."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32, out_sharding=None: jax.random.uniform(
        key, shape, dtype, -bound, bound, out_sharding=out_sharding
    )


def fan_out_normal(fan_out: int) -> Initializer:
    """Normal with variance 2 / fan_out (He et al. 2015), as in ResNet and EfficientNet."""
    return nn.initializers.normal((2 / fan_out) ** 0.5)


class Conv(nn.Module):
    """Square convolution, [B, H, W, C] to [B, H', W', features].

    For `padding` see `agenet.models.convolution.conv`. The initialisation is PyTorch's default, or
    `fan_out_normal` if `normal`.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: Padding = 0
    use_bias: bool = True
    normal: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, channels = self.kernel_size, x.shape[-1]
        default = fan_in_uniform(k * k * channels)
        init = fan_out_normal(k * k * self.features) if self.normal else default
        kernel = self.param("kernel", init, (k, k, channels, self.features))
        y = conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros if self.normal else default, y.shape[-1:])
        return y + bias.astype(self.dtype)


class DepthwiseConv(nn.Module):
    """Depthwise convolution without bias, [B, H, W, C] to [B, H', W', C]."""

    kernel_size: int
    stride: int = 1
    padding: Padding = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k = self.kernel_size
        kernel = self.param("kernel", fan_out_normal(k * k), (k, k, 1, x.shape[-1]))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return depthwise_conv(x, kernel, self.stride, self.padding)


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis (Ioffe and Szegedy 2015), in float32.

    In training the batch's mean and variance normalise, and running statistics become
    momentum * old + (1 - momentum) * batch. `unbiased` divides the batch's variance for the latter
    by n - 1, as PyTorch, instead of n, as TensorFlow.

    An `activation` given here takes no memory in training: it and the normalised values are
    recomputed for the gradient.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, activation: Callable[[jax.Array], jax.Array] | None = None
    ) -> jax.Array:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes, dtype=jnp.float32)
            var = jnp.square(x.astype(jnp.float32) - mean).mean(axes)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                correction = count / max(count - 1, 1) if self.unbiased else 1.0
                keep, new = self.momentum, 1 - self.momentum
                running_mean.value = keep * running_mean.value + new * mean
                running_var.value = keep * running_var.value + new * correction * var
        factor = scale * lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor

        def normalise(x: jax.Array, factor: jax.Array, shift: jax.Array) -> jax.Array:
            # In float32, because x * factor and shift may nearly cancel.
            y = (x * factor + shift).astype(self.dtype)
            return activation(y) if activation else y

        if train and activation:
            normalise = jax.checkpoint(normalise)
        return normalise(x, factor, shift)


class Dense(nn.Module):
    """Affine map of the last axis, [..., C] to [..., features], with PyTorch's initialisation."""

    features: int
    dtype: DTypeLike = jnp.float32
    precision: lax.Precision | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = fan_in_uniform(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return jnp.matmul(x, kernel, precision=self.precision) + bias.astype(self.dtype)


def max_pool(x: jax.Array) -> jax.Array:
    """3 x 3 max-pooling, stride 2, padding 1: [B, H, W, C] to [B, ceil(H/2), ceil(W/2), C].

    The first of equal maxima gets the gradient, as in PyTorch. On CPUs the gradient of XLA's
    reduce_window, a select-and-scatter, takes six times as long as this one.
    """

    def standard(x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    def separable(x: jax.Array) -> jax.Array:
        return _max_of_three(_max_of_three(x, 2), 1)

    return lax.platform_dependent(x, cpu=separable, default=standard)


def ceil_max_pool(x: jax.Array) -> jax.Array:
    """3 x 3 max-pooling, stride 2, with the output size rounded up, as in Caffe."""
    ends = [-(-(n - 3) // 2) * 2 + 3 - n for n in x.shape[1:3]]
    return nn.max_pool(x, (3, 3), (2, 2), [(0, end) for end in ends])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_three(x: jax.Array, axis: int) -> jax.Array:
    """The maximum of x[2i - 1], x[2i] and x[2i + 1] along `axis`."""
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
    """The slices x[2i - 1], x[2i] and x[2i + 1] along `axis`, -inf outside."""
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
    # A product with a banded matrix is faster than a windowed sum, as is its gradient. HIGHEST,
    # because TPUs round factors to bfloat16 by default.
    channel = np.arange(x.shape[-1])
    window = jnp.asarray(abs(channel[:, None] - channel) <= 2, x.dtype)
    total = jnp.matmul(jnp.square(x), window, precision=lax.Precision.HIGHEST)
    # total ** -0.75 without a general power.
    root = lax.rsqrt(1 + 1e-4 / 5 * total)
    return x * (root * jnp.sqrt(root))

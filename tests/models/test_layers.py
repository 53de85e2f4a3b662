"""The lowerings for CPUs have the values and gradients of the standard ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from agenet.distributed.mesh import batch_sharded, create_mesh
from agenet.models import convolution, layers
from agenet.models.convolution import conv, depthwise_conv

# Kernels [k, k, C, F], at least one for each lowering of `conv`.
KERNELS = [
    (1, 1, 6, 5),
    (3, 3, 3, 32),
    (3, 3, 3, 4),
    (7, 7, 3, 8),
    (3, 3, 8, 8),
    (3, 3, 8, 32),
    (3, 3, 128, 4),
]


def whole_numbers(*shapes):
    """Integers that are small enough for exact sums in float32."""
    rng = np.random.default_rng(0)
    return [rng.integers(-2, 3, shape).astype(np.float32) for shape in shapes]


def value_and_gradients(function, *args):
    @jax.jit
    def run(*args):
        value, backward = jax.vjp(function, *args)
        weights = jnp.arange(value.size, dtype=value.dtype).reshape(value.shape) % 7
        return value, *backward(weights)

    return run(*args)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("padding", [0, 1, "same"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_conv_on_cpus_equals_the_standard_one(kernel, stride, padding, size):
    args = whole_numbers((2, size, size + 3, kernel[2]), kernel)
    zeros = convolution.zeros_around(args[0].shape, kernel[0], stride, padding)
    ours = value_and_gradients(lambda x, w: conv(x, w, stride, padding), *args)
    standard = value_and_gradients(lambda x, w: convolution._standard(x, w, stride, zeros), *args)
    for actual, expected in zip(ours, standard, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("size", [8, 9])
def test_pooling_on_cpus_equals_the_standard_one(monkeypatch, size):
    (x,) = whole_numbers((2, size, size + 3, 3))  # full of ties
    ours = value_and_gradients(layers.max_pool, x)
    elsewhere = lambda *args, default, **_: default(*args)  # noqa: E731
    monkeypatch.setattr(layers.lax, "platform_dependent", elsewhere)
    for actual, expected in zip(ours, value_and_gradients(layers.max_pool, x), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (5, 2), (3, "same"), (5, "same"), (4, 0)])
def test_depthwise_lowerings_agree(kernel, padding, stride):
    args = whole_numbers((2, 9, 12, 5), (kernel, kernel, 1, 5))
    results = [
        value_and_gradients(
            lambda x, w, lowering=lowering: depthwise_conv(x, w, stride, padding, lowering), *args
        )
        for lowering in ("grouped", "shifted", "auto")
    ]
    for grouped, shifted, auto in zip(*results, strict=True):
        np.testing.assert_array_equal(grouped, shifted)
        np.testing.assert_array_equal(grouped, auto)


def test_depthwise_kernel_gradient_is_summed_in_float32():
    # Above 256, bfloat16 has not all integers.
    x, w = jnp.ones((1, 64, 64, 3), jnp.bfloat16), jnp.ones((1, 1, 1, 3), jnp.bfloat16)
    grad = jax.jit(jax.grad(lambda w: depthwise_conv(x, w, 1, 0).sum(dtype=jnp.float32)))(w)
    np.testing.assert_array_equal(grad.astype(np.float32), 64 * 64)


# A function like a block of each network.
def loss(x, kernels):
    for kernel in kernels[:-1]:
        x = jnp.maximum(conv(x, kernel, 2, 1), 0)
    return depthwise_conv(x, kernels[-1], 2, "same").mean()


SHAPES = [(3, 3, 3, 32), (1, 1, 32, 128), (3, 3, 128, 8), (3, 3, 1, 8)]


def test_batch_may_be_symbolic():
    kernels = whole_numbers(*SHAPES)
    (batch,) = export.symbolic_shape("b")
    image = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32)
    gradient = jax.jit(jax.grad(loss, 1))
    exported = export.export(gradient, platforms=["cpu", "cuda", "tpu"])(image, kernels)
    assert "gather" not in exported.mlir_module()
    for batch_size in (1, 3):
        (images,) = whole_numbers((batch_size, 32, 32, 3))
        for actual, expected in zip(
            exported.call(images, kernels), gradient(images, kernels), strict=True
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_batch_may_be_sharded():
    mesh = create_mesh()
    images, *kernels = whole_numbers((2 * mesh.size, 32, 32, 3), *SHAPES)
    gradient = jax.jit(jax.grad(loss, 1))
    expected = gradient(images, kernels)
    actual = gradient(jax.device_put(images, batch_sharded(mesh)), kernels)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

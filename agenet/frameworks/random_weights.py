"""Random weights for networks of PyTorch and Keras, with the same distribution in both.

Kernels are normal and keep the variance, and batch normalisation has the statistics of noise, with
jitter, so that nothing keeps its initial value and activations neither vanish nor explode.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from agenet.frameworks.keras_networks import import_keras


def randomise_torch(network: Any, size: int, rng: np.random.Generator, steady: bool) -> None:
    """Gives a `torch.nn.Module` for images of `size` pixels random weights."""
    import torch

    norms = []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            fill(module.weight, _kernel(rng, module.weight.shape, module.weight[0].numel()))
            if module.bias is not None:
                fill(module.bias, rng.normal(0, 0.1, module.bias.shape))
        elif isinstance(module, torch.nn.BatchNorm2d):
            norms.append(module)
            scale, bias = _affine(rng, name, len(module.weight), steady)
            fill(module.weight, scale)
            fill(module.bias, bias)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(to_torch(rng.normal(size=(4, size, size, 3))))
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean, var = _jitter(rng, norm.running_mean.numpy(), norm.running_var.numpy())
        fill(norm.running_mean, mean)
        fill(norm.running_var, var)


def randomise_keras(
    network: Any,
    size: int,
    rng: np.random.Generator,
    steady: bool,
    prepare: Callable[[np.ndarray], np.ndarray],
) -> None:
    """The same for a `keras.Model`; `prepare` turns normalised images into its input."""
    keras = import_keras()
    norms = []
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            norms.append(layer)
            scale, bias = _affine(rng, layer.name, layer.gamma.shape[0], steady)
            layer.gamma.assign(scale)
            layer.beta.assign(bias)
        elif hasattr(layer, "kernel"):  # DepthwiseConv2D is not a subclass of Conv2D.
            shape = layer.kernel.shape
            # Depthwise kernels are [k, k, C, 1], with one input per channel.
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            fan_in = math.prod(shape[:2]) if depthwise else math.prod(shape[:-1])
            layer.kernel.assign(_kernel(rng, shape, fan_in))
            if layer.bias is not None:
                layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    noise = rng.normal(size=(4, size, size, 3)).astype(np.float32)
    network(prepare(noise), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean, var = _jitter(rng, norm.moving_mean.numpy(), norm.moving_variance.numpy())
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(var)


def _kernel(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    return rng.normal(0, (2 / fan_in) ** 0.5, shape)


def _affine(
    rng: np.random.Generator, name: str, channels: int, steady: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias of the batch normalisation `name`."""
    scale, bias = rng.uniform(0.5, 1.5, channels), rng.normal(0, 0.1, channels)
    # ResNets of 50 layers and more are unstable unless their branches add little to the trunk.
    if re.search(r"bn3$|_3_bn$", name):
        scale *= 0.3
    if steady:
        scale = rng.uniform(0.4, 0.7, channels)
        # Units are always on or always off; those of a ResNet's trunk are all on.
        trunk = re.search(r"bn3$|_3_bn$|_0_bn$|downsample", name)
        bias += 5 * scale * (1 if trunk else rng.choice([-1, 1], channels))
    return scale, bias


def _jitter(
    rng: np.random.Generator, mean: np.ndarray, var: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    mean = mean + 0.1 * np.sqrt(var) * rng.normal(size=mean.shape)
    return mean, var * rng.uniform(0.7, 1.5, var.shape)


def fill(tensor: Any, values: np.ndarray) -> None:
    tensor.data = tensor.new_tensor(np.asarray(values))


def to_torch(images: np.ndarray) -> Any:
    import torch

    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), dtype=torch.float32)

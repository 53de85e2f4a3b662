"""EfficientNet B0 to B7, Lite0 to Lite4 and V2-B0 to V2-B3.

M. Tan, Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
2019. Lite networks have no squeeze-and-excitation, use ReLU6, and do not scale stem and head
(tensorflow/tpu, models/official/efficientnet/lite). V2: M. Tan, Q. Le, "EfficientNetV2: Smaller
Models and Faster Training", ICML 2021; its first stages have fused blocks (google/automl,
efficientnetv2/effnetv2_configs.py).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from agenet.models.layers import BatchNorm, Conv, DepthwiseConv, Padding


class Scale(NamedTuple):
    """Compound scaling of the base network, its input size in pixels and its dropout rate."""

    width: float
    depth: float
    input_size: int
    dropout_rate: float


# From the papers' code: efficientnet_builder.py, efficientnet_lite_builder.py, effnetv2_configs.py.
VARIANTS = {
    "b0": Scale(1.0, 1.0, 224, 0.2),
    "b1": Scale(1.0, 1.1, 240, 0.2),
    "b2": Scale(1.1, 1.2, 260, 0.3),
    "b3": Scale(1.2, 1.4, 300, 0.3),
    "b4": Scale(1.4, 1.8, 380, 0.4),
    "b5": Scale(1.6, 2.2, 456, 0.4),
    "b6": Scale(1.8, 2.6, 528, 0.5),
    "b7": Scale(2.0, 3.1, 600, 0.5),
    "lite0": Scale(1.0, 1.0, 224, 0.2),
    "lite1": Scale(1.0, 1.1, 240, 0.2),
    "lite2": Scale(1.1, 1.2, 260, 0.3),
    "lite3": Scale(1.2, 1.4, 280, 0.3),
    "lite4": Scale(1.4, 1.8, 300, 0.3),
    "v2_b0": Scale(1.0, 1.0, 224, 0.2),
    "v2_b1": Scale(1.0, 1.1, 240, 0.2),
    "v2_b2": Scale(1.1, 1.2, 260, 0.3),
    "v2_b3": Scale(1.2, 1.4, 300, 0.3),
}


class Stage(NamedTuple):
    """Consecutive blocks of the base network; only the first one uses the stride."""

    blocks: int
    kernel_size: int
    stride: int
    expansion: int
    features: int
    fused: bool = False


# Table 1 of the paper.
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
# v2_base_block in the paper's code.
V2_STAGES = (
    Stage(1, 3, 1, 1, 16, fused=True),
    Stage(2, 3, 2, 4, 32, fused=True),
    Stage(2, 3, 2, 4, 48, fused=True),
    Stage(3, 3, 2, 4, 96),
    Stage(5, 3, 1, 6, 112),
    Stage(8, 3, 2, 6, 192),
)


class EfficientNet(nn.Module):
    """Images [B, S, S, 3] to a feature map [B, ceil(S/32), ceil(S/32), D], D = 1280 in B0 and Lite.

    Flavours: "torchvision" and "timm" pad symmetrically, "tensorflow" (Keras, timm's `tf_`
    networks, the Lite release; V2's only one) uses TensorFlow's SAME padding; they also differ in
    batch normalisation. Names follow timm. In training each residual branch is dropped for random
    images, with a probability that grows linearly to `drop_path_rate` (G. Huang et al., "Deep
    Networks with Stochastic Depth", ECCV 2016).
    """

    variant: str
    flavour: str = "torchvision"
    drop_path_rate: float = 0.2
    frozen_stages: int = 0
    dtype: DTypeLike = jnp.float32

    @property
    def FLAVOURS(self) -> tuple[str, ...]:  # noqa: N802
        return ("tensorflow",) if self._v2 else ("torchvision", "timm", "tensorflow")

    @property
    def STAGES(self) -> tuple[tuple[str, ...], ...]:  # noqa: N802
        blocks = ((f"blocks_{i}",) for i in range(len(self._stages)))
        return (("conv_stem", "bn1"), *blocks, ("conv_head", "bn2"))

    @property
    def input_size(self) -> int:
        return VARIANTS[self.variant].input_size

    @property
    def _v2(self) -> bool:
        return self.variant.startswith("v2")

    @property
    def _stages(self) -> tuple[Stage, ...]:
        return V2_STAGES if self._v2 else STAGES

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        lite, same = self.variant.startswith("lite"), self.flavour == "tensorflow"
        scale, stages = VARIANTS[self.variant], self._stages
        width = partial(_round_features, scale=scale.width, least=0.0 if self._v2 else 0.9)
        conv = partial(Conv, use_bias=False, normal=True, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)
        if same:
            norm = partial(norm, momentum=0.9 if self._v2 else 0.99, epsilon=1e-3, unbiased=False)
        elif self.flavour == "torchvision" and self.variant in ("b5", "b6", "b7"):
            norm = partial(norm, momentum=0.99, epsilon=1e-3)
        activation = nn.relu6 if lite else nn.silu
        frozen, head_stage = self.frozen_stages, len(stages) + 1

        x = lax.stop_gradient(images) if frozen == 0 else images
        stem = 32 if lite else width(32)
        x = conv(stem, 3, stride=2, padding="same" if same else 1, name="conv_stem")(x)
        x = norm(name="bn1")(x, train and frozen < 1, activation)

        counts = [math.ceil(stage.blocks * scale.depth) for stage in stages]
        if lite:
            counts[0], counts[-1] = stages[0].blocks, stages[-1].blocks
        done = 0
        for number, (stage, count) in enumerate(zip(stages, counts, strict=True)):
            x = lax.stop_gradient(x) if frozen == number + 1 else x
            block = FusedMBConv if stage.fused else partial(MBConv, squeeze=not lite)
            for index in range(count):
                x = block(
                    features=width(stage.features),
                    kernel_size=stage.kernel_size,
                    stride=stage.stride if index == 0 else 1,
                    expansion=stage.expansion,
                    padding="same" if same else stage.kernel_size // 2,
                    drop_path_rate=self.drop_path_rate * done / sum(counts),
                    activation=activation,
                    conv=conv,
                    norm=norm,
                    name=f"blocks_{number}_{index}",
                )(x, train and frozen <= number + 1)
                done += 1

        x = lax.stop_gradient(x) if frozen == head_stage else x
        x = conv(1280 if lite else width(1280), 1, name="conv_head")(x)
        x = norm(name="bn2")(x, train and frozen <= head_stage, activation)
        return lax.stop_gradient(x) if frozen > head_stage else x


class MBConv(nn.Module):
    """Inverted residual block: expansion, depthwise convolution, squeeze-excitation, projection."""

    features: int
    kernel_size: int
    stride: int
    expansion: int
    padding: Padding
    squeeze: bool
    drop_path_rate: float
    activation: Callable[[jax.Array], jax.Array]
    conv: partial[Conv]
    norm: partial[BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        norms = (f"bn{i}" for i in (1, 2, 3))
        y = x
        if self.expansion != 1:
            y = self.conv(channels * self.expansion, 1, name="conv_pw")(y)
            y = self.norm(name=next(norms))(y, train, self.activation)
        dtype = self.conv.keywords["dtype"]
        y = DepthwiseConv(self.kernel_size, self.stride, self.padding, dtype, name="conv_dw")(y)
        y = self.norm(name=next(norms))(y, train, self.activation)
        if self.squeeze:
            y = SqueezeExcitation(channels // 4, self.activation, self.conv, name="se")(y)
        # timm's names: the projection of a block without expansion is its only pointwise one.
        project = "conv_pw" if self.expansion == 1 else "conv_pwl"
        y = self.norm(name=next(norms))(self.conv(self.features, 1, name=project)(y), train)
        return _add_branch(x, y, self.stride, self.drop_path_rate, train)


class FusedMBConv(nn.Module):
    """Block of V2: one convolution in place of expansion and depthwise convolution, and projection.

    Without expansion it is a single convolution.
    """

    features: int
    kernel_size: int
    stride: int
    expansion: int
    padding: Padding
    drop_path_rate: float
    activation: Callable[[jax.Array], jax.Array]
    conv: partial[Conv]
    norm: partial[BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(
            self.conv, kernel_size=self.kernel_size, stride=self.stride, padding=self.padding
        )
        # timm's names.
        if self.expansion == 1:
            y = conv(self.features, name="conv")(x)
            y = self.norm(name="bn1")(y, train, self.activation)
        else:
            y = conv(x.shape[-1] * self.expansion, name="conv_exp")(x)
            y = self.norm(name="bn1")(y, train, self.activation)
            y = self.norm(name="bn2")(self.conv(self.features, 1, name="conv_pwl")(y), train)
        return _add_branch(x, y, self.stride, self.drop_path_rate, train)


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation: J. Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018."""

    reduced: int
    activation: Callable[[jax.Array], jax.Array]
    conv: partial[Conv]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        y = self.activation(self.conv(self.reduced, 1, use_bias=True, name="conv_reduce")(y))
        y = self.conv(x.shape[-1], 1, use_bias=True, name="conv_expand")(y)
        return x * nn.sigmoid(y)


def _add_branch(
    x: jax.Array, y: jax.Array, stride: int, drop_path_rate: float, train: bool
) -> jax.Array:
    """Adds a block's input x to its output y, if they have the same shape."""
    if stride != 1 or x.shape[-1] != y.shape[-1]:
        return y
    # Stochastic depth: dropout of an image's whole branch.
    drop = nn.Dropout(drop_path_rate, broadcast_dims=(1, 2, 3), deterministic=not train)
    return x + drop(y)


def _round_features(features: int, scale: float, least: float) -> int:
    """Scales and rounds to the nearest multiple of 8 that is at least `least` of the result."""
    scaled = features * scale
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < least * scaled else rounded

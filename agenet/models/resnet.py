"""ResNet: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016."""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from agenet.models.layers import BatchNorm, Conv, max_pool

# For each depth, the numbers of blocks of the four stages, and whether they are bottlenecks.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class ResNet(nn.Module):
    """Images [B, S, S, 3] to a feature map [B, S/32, S/32, D], D = 512, or 2048 from depth 50.

    Flavours: "torchvision" has the stride of a bottleneck in its 3 x 3 convolution; "keras", as
    in the paper, in the first 1 x 1 convolution, and has biases. Names follow torchvision.
    """

    STAGES: ClassVar = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
    input_size: ClassVar[int] = 224

    depth: int
    flavour: str = "torchvision"
    frozen_stages: int = 0
    dtype: DTypeLike = jnp.float32

    @property
    def FLAVOURS(self) -> tuple[str, ...]:  # noqa: N802
        return ("torchvision", "keras") if DEPTHS[self.depth][1] else ("torchvision",)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        keras = self.flavour == "keras"
        conv = partial(Conv, use_bias=keras, normal=True, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)
        if keras:
            norm = partial(norm, momentum=0.99, epsilon=1.001e-5, unbiased=False)
        blocks, bottleneck = DEPTHS[self.depth]

        x = lax.stop_gradient(images) if self.frozen_stages == 0 else images
        x = conv(64, 7, stride=2, padding=3, name="conv1")(x)
        x = norm(name="bn1")(x, train and self.frozen_stages < 1)
        x = max_pool(nn.relu(x))
        for stage, count in enumerate(blocks, start=1):
            x = lax.stop_gradient(x) if self.frozen_stages == stage else x
            for index in range(count):
                x = Block(
                    width=64 * 2 ** (stage - 1),
                    stride=2 if index == 0 and stage > 1 else 1,
                    bottleneck=bottleneck,
                    stride_first=keras,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage}_{index}",
                )(x, train and stage >= self.frozen_stages)
        return lax.stop_gradient(x) if self.frozen_stages > len(blocks) else x


class Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or a bottleneck of 1 x 1, 3 x 3, 1 x 1."""

    width: int
    stride: int
    bottleneck: bool
    stride_first: bool
    conv: partial[Conv]
    norm: partial[BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        features = self.width * (4 if self.bottleneck else 1)
        sizes = (1, 3, 1) if self.bottleneck else (3, 3)
        strided = 0 if self.stride_first or not self.bottleneck else 1
        y = x
        for i, size in enumerate(sizes):
            last = i == len(sizes) - 1
            y = self.conv(
                features if last else self.width,
                size,
                stride=self.stride if i == strided else 1,
                padding=size // 2,
                name=f"conv{i + 1}",
            )(y)
            y = self.norm(name=f"bn{i + 1}")(y, train)
            y = y if last else nn.relu(y)
        if x.shape[-1] != features or self.stride != 1:
            x = self.conv(features, 1, stride=self.stride, name="downsample_0")(x)
            x = self.norm(name="downsample_1")(x, train)
        return nn.relu(x + y)

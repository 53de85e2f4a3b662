"""EfficientNet-Lite written out in PyTorch, with this package's weights: a peer for benchmarks."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from agenet.errors import UserError
from agenet.weights.spec import WeightsSpec

_BACKBONE = "backbone/"


def create_torch(path: Path) -> Any:
    """A `torch.nn.Module` from uint8 [B, S, S, 3] to the logits of each task, [B, C].

    What a user of PyTorch would do to make it fast is done: the batch normalisations are part of
    the convolutions.

    Raises:
        UserError: it is another network, or has other heads than linear ones.
    """
    # Imported here, not above: they bring JAX, which the other contestants have no need of.
    from agenet.models.efficientnet import STAGES
    from agenet.weights.load import METADATA_KEY

    with safe_open(path, "np") as file:
        spec = WeightsSpec.from_json(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if spec.model != "efficientnet_lite0" or "params/heads/bn/scale" in tensors:
        raise UserError(f"PyTorch has no peer of {spec.model} with these heads here")
    if "ordinal" in spec.heads.values():
        raise UserError("PyTorch has no peer of ordinal heads here")
    import torch
    from torch import nn

    same = spec.flavour == "tensorflow"
    side = spec.input.size

    def conv(name: str, norm: str, stride: int = 1, act: bool = True) -> list[nn.Module]:
        nonlocal side
        kernel = tensors[f"params/{_BACKBONE}{name}/kernel"]
        mean, var = (tensors[f"batch_stats/{_BACKBONE}{norm}/{key}"] for key in ("mean", "var"))
        factor = tensors[f"params/{_BACKBONE}{norm}/scale"] / np.sqrt(
            var + (1e-3 if same else 1e-5)
        )
        bias = tensors[f"params/{_BACKBONE}{norm}/bias"] - mean * factor
        size, _, channels, features = kernel.shape
        groups = features if name.endswith("conv_dw") else 1
        out = -(-side // stride)
        zeros = max((out - 1) * stride + size - side, 0) if same else size // 2 * 2
        side = out
        uneven = zeros % 2
        padding = 0 if uneven else zeros // 2
        layer = nn.Conv2d(channels * groups, features, size, stride, padding, groups=groups)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor((kernel * factor).transpose(3, 2, 0, 1)))
            layer.bias.copy_(torch.tensor(bias))
        before, after = zeros // 2, zeros - zeros // 2
        pad = [nn.ZeroPad2d((before, after, before, after))] if uneven else []
        return [*pad, layer, *([nn.ReLU6(inplace=True)] if act else [])]

    class Residual(nn.Sequential):
        def forward(self, x: Any) -> Any:
            return x + super().forward(x)

    layers = conv("conv_stem", "bn1", 2)
    width = 32
    for number, stage in enumerate(STAGES):
        for index in range(stage.blocks):
            block, stride = f"blocks_{number}_{index}/", stage.stride if index == 0 else 1
            if stage.expansion == 1:
                body = conv(block + "conv_dw", block + "bn1", stride)
                body += conv(block + "conv_pw", block + "bn2", act=False)
            else:
                body = conv(block + "conv_pw", block + "bn1")
                body += conv(block + "conv_dw", block + "bn2", stride)
                body += conv(block + "conv_pwl", block + "bn3", act=False)
            adds = stride == 1 and width == stage.features
            layers += [Residual(*body)] if adds else body
            width = stage.features
    layers += conv("conv_head", "bn2")

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(*layers)
            self.heads = nn.ModuleDict()
            for task in spec.heads:
                kernel, bias = (tensors[f"params/heads/{task}/{key}"] for key in ("kernel", "bias"))
                head = nn.Linear(*kernel.shape)
                with torch.no_grad():
                    head.weight.copy_(torch.tensor(kernel.T))
                    head.bias.copy_(torch.tensor(bias))
                self.heads[task] = head
            self.register_buffer("mean", torch.tensor(spec.input.mean).reshape(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(spec.input.std).reshape(1, 3, 1, 1))

        def forward(self, images: Any) -> dict[str, Any]:
            start, size = (spec.stored_size - spec.input.size) // 2, spec.input.size
            middle = images[:, start : start + size, start : start + size]
            x = (middle.permute(0, 3, 1, 2).float() - self.mean) / self.std
            features = self.backbone(x).mean((2, 3))
            return {task: head(features) for task, head in self.heads.items()}

    return Network().eval().to(memory_format=torch.channels_last)

"""Networks of agenet in PyTorch: torchvision's, changed where ours differ, and Levi-Hassner's.

Each has the layers of agenet's network of the same name, so that `agenet.weights.names.torchvision`
only renames and transposes weights. This file needs PyTorch and torchvision alone: `agenet port`
puts a copy beside the weights of networks that torchvision lacks.
"""

import sys
from typing import Any

_declared: Any = None


def import_torchvision() -> Any:
    """Imports torchvision, whose networks work even where its compiled operators do not load.

    A build of torchvision fits one build of PyTorch exactly; beside another, importing it fails on
    the operators of object detection. These are therefore declared, without an implementation.
    """
    import torch

    try:
        import torchvision as library
    except RuntimeError:
        for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        global _declared  # A library's declarations go with it.
        _declared = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            _declared.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        import torchvision as library
    return library


def create_torch(
    model: str, size: int, classes: int, *, regular: bool = False, flavour: str = ""
) -> Any:
    """A `torch.nn.Module` from [B, 3, size, size] to logits [B, classes], with initial weights.

    Levi-Hassner's network is of flavour "report", ResNet of "torchvision", EfficientNet of
    "tensorflow" unless `flavour` is another one, such as "timm".

    Args:
        model: agenet's name of the network.
        size: side of the input in pixels.
        classes: number of outputs.
        regular: whether training drops units and branches, at the rates of agenet's networks.
    """
    import torch

    nn = torch.nn
    if model == "levi_hassner":
        return _levi_hassner(size, classes, 0.5 * regular)
    models, rate = import_torchvision().models, 0.2 * regular
    if model.startswith("resnet"):
        module = getattr(models, model)(num_classes=classes)
        drop = nn.Dropout(rate)
        module.fc.register_forward_pre_hook(lambda _, inputs: drop.train(module.training)(*inputs))
        return module
    lite, same = "lite" in model, flavour in ("", "tensorflow")
    name = model.replace("lite", "b")
    module = getattr(models, name)(num_classes=classes, dropout=rate, stochastic_depth_prob=rate)
    for part in [*module.modules()]:
        if isinstance(part, nn.BatchNorm2d) and same:
            part.eps, part.momentum = 1e-3, 0.01
        if isinstance(part, nn.Conv2d) and part.stride[0] == 2 and same:
            part.padding = (0, 0)
            part.register_forward_pre_hook(_pad_same)
        for child_name, child in [*part.named_children()] if lite else []:
            if isinstance(child, nn.SiLU):
                setattr(part, child_name, nn.ReLU6(inplace=True))
            elif type(child).__name__ == "SqueezeExcitation":
                setattr(part, child_name, nn.Identity())
    return module


def _pad_same(conv: Any, inputs: Any) -> Any:
    """Pads like TensorFlow's SAME before a convolution of stride two: an odd zero comes last."""
    import torch

    (x,) = inputs
    size, stride = conv.kernel_size[0], conv.stride[0]
    # Integers, so that exporters see constants.
    sides = [int(side) for side in x.shape[2:]]
    rows, columns = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in sides)
    zeros = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return (torch.nn.functional.pad(x, zeros),)


def _levi_hassner(size: int, classes: int, dropout: float) -> Any:
    from torch import nn

    side = (size - 5) // 4 + 1
    for _ in range(3):
        side = (side - 1) // 2 + 1

    class LeviHassner(nn.Module):
        """G. Levi, T. Hassner, "Age and Gender Classification using CNNs", CVPRW 2015."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 96, 7, stride=4, padding=1)
            self.conv2 = nn.Conv2d(96, 256, 5, padding=2)
            self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
            self.fc1 = nn.Linear(384 * side * side, 512)
            self.fc2 = nn.Linear(512, 512)
            self.classifier = nn.Linear(512, classes)
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)
            self.norm = nn.LocalResponseNorm(5)
            self.drop = nn.Dropout(dropout)

        def forward(self, x: Any) -> Any:
            x = self.norm(self.pool(self.conv1(x).relu()))
            x = self.norm(self.pool(self.conv2(x).relu()))
            x = self.pool(self.conv3(x).relu())
            # As rows, columns, channels, so that the matrix needs no reordering.
            x = x.permute(0, 2, 3, 1).flatten(1)
            x = self.drop(self.fc1(x).relu())
            return self.classifier(self.drop(self.fc2(x).relu()))

    return LeviHassner()

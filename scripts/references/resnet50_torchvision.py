"""Trains a new last layer on torchvision's ResNet-50, like the reference report.

python scripts/references/resnet50_torchvision.py --task=age
"""

from typing import Any

import torch
from torch import nn

from agenet.errors import one_line_errors
from agenet.frameworks.torch_networks import import_torchvision
from scripts.references.faces import CLASSES, getting, parser
from scripts.references.levi_hassner_pytorch import create_loaders, train

models = import_torchvision().models


class Frozen(nn.Module):
    """A frozen backbone in inference mode, and the layer that is trained."""

    def __init__(self, backbone: Any, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(backbone.fc.in_features, classes)
        backbone.fc = nn.Identity()
        self.backbone = backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.backbone.eval()  # Batch normalisation uses the statistics of ImageNet.
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)


def main() -> None:
    options = parser(__doc__.splitlines()[0], size=224, batch_size=50)
    options.add_argument("--task", choices=tuple(CLASSES), default="age")
    options.add_argument(
        "--weights",
        default="imagenet",
        help="imagenet (fetched by torchvision), none, or a file of its state dictionary",
    )
    args = options.parse_args()
    torch.manual_seed(args.seed)
    weights = models.ResNet50_Weights.IMAGENET1K_V2 if args.weights == "imagenet" else None
    with getting(args.weights):
        backbone = models.resnet50(weights=weights)
        if args.weights not in ("imagenet", "none"):
            backbone.load_state_dict(torch.load(args.weights, weights_only=True))
    train(Frozen(backbone, CLASSES[args.task]), create_loaders(args), args.epochs)


if __name__ == "__main__":
    with one_line_errors():
        main()

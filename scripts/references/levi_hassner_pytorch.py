"""Trains the reference report's Levi-Hassner CNN in PyTorch: 5 epochs, batch 50, Adam at 1e-4.

python scripts/references/levi_hassner_pytorch.py --task=age
"""

import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from agenet.errors import one_line_errors
from agenet.frameworks.torch_networks import create_torch, import_torchvision
from scripts.references.faces import CLASSES, MEAN, STD, Faces, parser, read_faces

import_torchvision()  # Also works with a build of PyTorch that torchvision was not built for.
from torchvision.transforms import v2  # noqa: E402


class FaceDataset(Dataset):
    """Transformed images [3, S, S] and labels."""

    def __init__(self, faces: Faces, task: str, transform: Any) -> None:
        self.images, self.labels, self.transform = faces.images, faces.labels[task], transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self.images[row]).permute(2, 0, 1)
        return self.transform(image), int(self.labels[row])


def transforms(size: int, train: bool) -> Any:
    """Random crops and flips for training, otherwise the central crop; normalised."""
    cut: list[Any] = [v2.RandomCrop(size), v2.RandomHorizontalFlip()]
    return v2.Compose(
        [
            *(cut if train else [v2.CenterCrop(size)]),
            v2.ToDtype(torch.float32),
            v2.Normalize(MEAN, STD),
        ]
    )


def train(model: nn.Module, loaders: tuple[DataLoader, DataLoader], epochs: int) -> None:
    """Trains the parameters that require a gradient, and tests after each epoch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4)
    loss_fn = nn.CrossEntropyLoss()
    for epoch in range(1, epochs + 1):
        start, total = time.perf_counter(), 0.0
        model.train()
        for images, labels in loaders[0]:
            optimizer.zero_grad()
            loss = loss_fn(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
        accuracy, test_loss = test(model, loaders[1], device)
        print(
            f"epoch {epoch}: training loss {total / max(len(loaders[0]), 1):.4f}, "
            f"test loss {test_loss:.4f}, test accuracy {accuracy:.2%}, "
            f"{time.perf_counter() - start:.1f} s",
            flush=True,
        )


@torch.no_grad()
def test(model: nn.Module, loader: DataLoader, device: str) -> tuple[float, float]:
    """Returns accuracy and mean loss."""
    model.eval()
    right, loss, count = 0, 0.0, 0
    for images, labels in loader:
        logits, labels = model(images.to(device)), labels.to(device)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    return right / count, loss / count


def create_loaders(args: Any) -> tuple[DataLoader, DataLoader]:
    """Loaders of the training and the test set for the task of the options."""
    faces, test_faces = read_faces(args, (args.task,))
    train_set = FaceDataset(faces, args.task, transforms(args.size, train=True))
    test_set = FaceDataset(test_faces, args.task, transforms(args.size, train=False))
    return (
        DataLoader(train_set, args.batch_size, shuffle=True),
        DataLoader(test_set, args.batch_size),
    )


def main() -> None:
    options = parser(__doc__.splitlines()[0], size=227, batch_size=50)
    options.add_argument("--task", choices=tuple(CLASSES), default="age")
    args = options.parse_args()
    torch.manual_seed(args.seed)
    loaders = create_loaders(args)
    model = create_torch("levi_hassner", args.size, CLASSES[args.task], regular=True)
    train(model, loaders, args.epochs)


if __name__ == "__main__":
    with one_line_errors():
        main()

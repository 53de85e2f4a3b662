"""The report's networks in their own frameworks can be built, without data and weights."""

import importlib

import numpy as np
import pytest

from agenet.frameworks import networks
from agenet.frameworks.keras_networks import import_keras

SIZE = 64


def test_pytorch() -> None:
    if reason := networks.why_not("torchvision"):
        pytest.skip(reason)
    import torch

    reference = importlib.import_module("scripts.references.levi_hassner_pytorch")
    images = torch.zeros(2, 3, SIZE, SIZE)
    network = reference.create_torch("levi_hassner", SIZE, 8, regular=True)
    assert network(images).shape == (2, 8)
    transform = reference.transforms(SIZE, train=True)
    assert transform(torch.zeros(3, 80, 80, dtype=torch.uint8)).shape == (3, SIZE, SIZE)

    reference = importlib.import_module("scripts.references.resnet50_torchvision")
    network = reference.Frozen(reference.models.resnet50(), 2).train()
    assert network(images).shape == (2, 2)
    trained = [name for name, value in network.named_parameters() if value.requires_grad]
    assert trained == ["head.weight", "head.bias"]
    assert not any(module.training for module in network.backbone.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_keras() -> None:
    if reason := networks.why_not("keras"):
        pytest.skip(reason)
    import_keras()
    reference = importlib.import_module("scripts.references.efficientnet_b0_keras")
    model = reference.create_model(SIZE, "none")
    answers = model(np.zeros((2, SIZE, SIZE, 3), np.float32))
    assert {task: value.shape for task, value in answers.items()} == {
        "age": (2, 8),
        "gender": (2, 2),
    }
    # As the report's, which had dropout among its extra layers only; the backbone is frozen.
    assert "Dropout" not in {type(layer).__name__ for layer in model.layers}
    assert len(model.trainable_variables) == 4

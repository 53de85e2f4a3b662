"""The specification of a finished run's weights."""

from pathlib import Path

import pytest

from agenet.training.finished_run import FinishedRun

RECORD = {
    "config": {
        "model": {"name": "resnet18", "flavour": "torchvision"},
        "input": {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "size": 128, "crop_size": 112},
        "heads": {"age": "groups", "gender": "softmax"},
        "seed": 7,
    },
    "dataset": {"name": "adience/faces/1.0.0"},
    "classes": ["age", "gender"],
}


@pytest.mark.parametrize(
    ("init", "name"),
    [
        ("random", "random"),
        ("lite/efficientnet_lite0.imagenet", "lite/efficientnet_lite0.imagenet"),
        ("/home/somebody/runs/first", "first"),
        ("~/weights/mine.safetensors", "mine.safetensors"),
        ("runs/first/", "first"),
    ],
)
def test_origin_names_no_folder_of_this_machine(init: str, name: str) -> None:
    record = RECORD | {"config": RECORD["config"] | {"init": init}}  # type: ignore[operator]
    spec = FinishedRun(Path("/home/somebody/runs/second"), record).spec
    assert spec.origin == f"trained on adience/faces/1.0.0, seed 7, from {name}"
    assert "somebody" not in spec.to_json()

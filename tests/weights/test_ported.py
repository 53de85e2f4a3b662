"""Notes in files that agenet wrote for other frameworks; whole files are in tests/frameworks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from agenet.errors import UserError
from agenet.weights.formats import note
from agenet.weights.load import read_weights
from agenet.weights.ported import Note, split_head
from tests.weights.test_load import SPEC

COLUMNS = {"gender": (0, 2), "age": (2, 10)}
NOTE = Note(SPEC, "torchvision", COLUMNS)


def test_note_there_and_back() -> None:
    spec = replace(SPEC, trained_on={"fairface": "all outside fold 0"}, heads={"age": "groups"})
    for each in (NOTE, Note(spec, "caffe", COLUMNS)):
        assert Note.from_json(each.to_json()) == each


def test_split_head() -> None:
    kernel = np.arange(50, dtype=np.float32).reshape(5, 10)
    tensors = {"params/heads/classes/kernel": kernel, "params/backbone/conv/bias": kernel[0]}
    split = split_head(tensors, COLUMNS)
    assert split.keys() == {
        "params/backbone/conv/bias",
        "params/heads/age/kernel",
        "params/heads/gender/kernel",
    }
    assert np.array_equal(split["params/heads/gender/kernel"], kernel[:, :2])
    assert np.array_equal(split["params/heads/age/kernel"], kernel[:, 2:])
    for wrong in (kernel[:, :9], kernel[0, 0]):
        with pytest.raises(UserError, match=r"has the shape .*, not 10 outputs"):
            split_head({"params/heads/classes/kernel": wrong}, COLUMNS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: "{", "is damaged"),
        (lambda said: "[" * 100_000, "is damaged"),
        (lambda said: "9" * 10_000, "is damaged"),
        (lambda said: [said], "is damaged"),
        (lambda said: said | {"more": 1}, "is damaged"),
        (lambda said: said | {"names": "elsewhere"}, "names no known source"),
        (lambda said: said | {"names": []}, "names no known source"),
        (lambda said: said | {"columns": {"age": [0, 8]}}, "other heads"),
        (lambda said: said | {"columns": {"age": [1, 9], "gender": [9, 11]}}, "other heads"),
        (lambda said: said | {"columns": {"age": [0, 8], "gender": [7, 9]}}, "other heads"),
        (lambda said: said | {"columns": {"age": [0, 8], "gender": "8"}}, "other heads"),
        (lambda said: said | {"columns": {"age": [0, 8.0], "gender": [8, 10]}}, "other heads"),
        (lambda said: said | {"columns": [1]}, "other heads"),
        (lambda said: said | {"spec": {}}, "weights specification must have"),
        (lambda said: said | {"spec": said["spec"] | {"model": "\x1b"}}, "printable text"),
        # It is a note, but of another file.
        (lambda said: said, "conv1/0.*: not in a network"),
    ],
)
def test_notes_that_strangers_wrote(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    changed = change(json.loads(NOTE.to_json()))
    text = changed if isinstance(changed, str) else json.dumps(changed)
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"conv1/0": np.ones(3)}, path, {note.KEY: text})
    with pytest.raises(UserError, match=message) as error:
        read_weights(path)
    assert str(error.value).startswith(f"{path}: ") and str(error.value).isprintable()

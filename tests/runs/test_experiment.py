from collections.abc import Callable

import jax
import numpy as np
import pytest

from agenet.data.records import Records
from agenet.distributed.mesh import create_mesh
from agenet.runs.create import create_experiment
from tests.tiny import tiny_config, use_records


@pytest.mark.parametrize("head", ["groups", "ordinal"])
def test_classes_are_balanced_over_the_training_set(
    make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    records = make_records()
    use_records(records, monkeypatch.setattr)
    config = tiny_config(class_weights="balanced", heads__age=head)
    found = create_experiment(config, create_mesh(jax.devices()[:1]))
    weights = found._class_weights()
    for task, classes in (("age", 8), ("gender", 2)):
        labels = records.labels[task][found.splits.train]
        counts = np.bincount(labels[labels >= 0])
        np.testing.assert_allclose(weights[task] * counts, counts.sum() / classes, rtol=1e-6)

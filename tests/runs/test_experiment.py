from collections.abc import Callable

import jax
import numpy as np
import pytest

from agenet.data.records import Records
from agenet.distributed.mesh import create_mesh
from agenet.models.heads import OrdinalHead
from agenet.runs.create import create_experiment
from agenet.runs.initial_state import create_initial_state
from agenet.training.losses import estimate_age_distribution
from tests.tiny import tiny_config, use_records


@pytest.mark.parametrize("head", ["distribution", "ordinal"])
def test_ages_by_year_start_from_their_distribution(
    make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    records = make_records()
    use_records(records, monkeypatch.setattr)
    config = tiny_config(heads__age=head)
    experiment = create_experiment(config, create_mesh(jax.devices()[:1]))
    rows = experiment.splits.train
    expected = estimate_age_distribution(records.age_low[rows], records.age_high[rows])
    params = dict(create_initial_state(experiment).params["heads"]["age"])
    outputs = params["bias"]
    if head == "ordinal":
        params["kernel"] = np.zeros_like(params["kernel"])  # Random, as of the other head.
        layer = OrdinalHead(101)
        outputs = layer.apply({"params": params}, np.zeros((1, len(params["kernel"]))))[0]
    years = jax.nn.softmax(outputs)
    np.testing.assert_allclose(np.cumsum(years), np.cumsum(expected), atol=0.01)


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

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import pytest

from agenet.data.records import Records
from agenet.distributed.mesh import create_mesh
from agenet.errors import UserError
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


@pytest.mark.parametrize("head", ["groups", "ordinal"])
@pytest.mark.parametrize("sampling", ["class_balanced", "age_balanced"])
def test_balanced_sampling(
    make_records: Callable[..., Records],
    monkeypatch: pytest.MonkeyPatch,
    sampling: str,
    head: str,
) -> None:
    records = make_records(600)
    use_records(records, monkeypatch.setattr)
    config = tiny_config(dataset__sampling=sampling, heads__age=head)
    found = create_experiment(config, create_mesh(jax.devices()[:1]))
    order = found.training_order
    assert order.steps_per_epoch == found.plan.steps_per_epoch
    epoch = order.epoch(1)
    age, gender = (records.labels[task][epoch] for task in ("age", "gender"))
    if sampling == "age_balanced":
        counts = np.bincount(age[age >= 0])
    else:
        both = (age >= 0) & (gender >= 0)
        counts = np.bincount(age[both] * 2 + gender[both], minlength=16)
        # Faces that lack a label keep their share.
        trained = [records.labels[task][found.splits.train] for task in ("age", "gender")]
        assert len(age) - both.sum() == np.sum((trained[0] < 0) | (trained[1] < 0))
    assert counts.max() - counts.min() <= 1


def test_sampling_without_labels(
    make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make_records()
    unknown = np.full_like(records.age_low, -1)
    records = dataclasses.replace(records, age_low=unknown, age_high=unknown)
    use_records(records, monkeypatch.setattr)
    config = tiny_config(dataset__sampling="age_balanced", tasks="gender")
    experiment = create_experiment(config, create_mesh(jax.devices()[:1]))
    with pytest.raises(UserError, match=r"no training face has the labels of age: use --config.da"):
        _ = experiment.training_order


def test_muon_needs_a_backbone(
    make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_records(make_records(), monkeypatch.setattr)
    config = tiny_config(optimizer__name="muon", freeze="backbone", init="default")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, flavour="tiny"))
    config = dataclasses.replace(
        config, input=dataclasses.replace(config.input, mean=(0.0,) * 3, std=(1.0,) * 3)
    )
    with pytest.raises(UserError, match=r'optimizer\.name "muon" is for the kernels of the backb'):
        create_experiment(config, create_mesh(jax.devices()[:1]))

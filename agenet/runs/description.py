"""Describes a run for its first log lines, its checkpoints and its report."""

from typing import Any

import jax
from clu.parameter_overview import get_parameter_overview

from agenet.data.splits import count_leaked, describe_splits
from agenet.runs.config import to_dict
from agenet.runs.experiment import Experiment
from agenet.runs.identity import digest_weights
from agenet.runs.lineage import join_trained_on, trained_on
from agenet.runs.machine import describe_machine
from agenet.training.freeze import split_params


def describe(experiment: Experiment) -> dict[str, Any]:
    """Config, data, network and machine: the first part of a report, JSON-serialisable."""
    config, records, splits = experiment.config, experiment.records, experiment.splits
    params = experiment.abstract_state().params
    trained, _ = split_params(params, experiment.model.frozen)
    return {
        "config": to_dict(config),
        "dataset": {
            "name": records.name,
            "notice": records.notice,
            "labels": config.dataset.labels,
            "protocol": config.dataset.protocol,
            "test_fold": config.dataset.test_fold,
            "seed": config.seed,
            "counts": describe_splits(records, splits, experiment.tasks),
            "leakage": {
                "test_faces": len(splits.test),
                "seen_subject": count_leaked(records, splits),
            },
        },
        "model": {
            "name": config.model.name,
            "flavour": config.model.flavour,
            "initial": config.init,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "trained": sum(leaf.size for leaf in jax.tree.leaves(trained)),
        },
        "machine": describe_machine(),
    }


def describe_parameters(experiment: Experiment) -> str:
    """A table of the network's parameters: names, shapes, types and sizes."""
    params = experiment.abstract_state().params
    return f"{get_parameter_overview(params, include_stats=False)}\n"


def describe_origin(experiment: Experiment) -> dict[str, Any]:
    """The subjects that a run is trained on, and its initial weights, which are opened for it.

    Subjects in the training data of a teacher count as its own.
    """
    config, teacher = experiment.config, experiment.teacher
    seen = experiment.initial.spec.trained_on if experiment.initial else {}
    taught = join_trained_on(seen, teacher.trained_on) if teacher else seen
    found: dict[str, Any] = {
        "trained_on": trained_on(experiment.records, experiment.splits, taught),
        "initial": {"digest": digest_weights(config.init), "data": sorted(seen)},
    }
    if teacher:
        found["teacher"] = {"digest": digest_weights(config.distill.teacher)}
    return found

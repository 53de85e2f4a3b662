"""A search: optimizer, rate, dropout and smoothing of new heads on frozen EfficientNet features.

agenet sweep --sweep=heads --workdir=runs/heads --config.init=runs/fairface

Lite0, or another variant after a colon; needs the extra "search". The frozen features are computed
once for all trials. The same command typed again, in another terminal or on another machine that
shares the folder, is one more worker.
"""

from typing import Any


def get_sweep(arch: str = "lite0") -> dict[str, Any]:
    """A base config, fields of all trials, their number, and what a trial varies.

    Trials are compared by `best`. Two keys are left out here: "sampler", a function from a seed to
    one of Optuna's samplers, by default TPE; and "pruner", a function that returns one of its
    pruners, by default the one that stops trials below the median from their second validation on.
    """
    return {
        "config": f"configs/effnet_adience.py:{arch}",
        "fields": {"best": "validation/accuracy", "trackers": ()},
        "trials": 30,
        "suggest": suggest,
    }


def suggest(trial: Any) -> dict[str, Any]:
    """The fields that a trial sets, drawn by the methods of an Optuna trial."""
    fields: dict[str, Any] = {
        "schedule.name": trial.suggest_categorical("schedule", ["constant", "cosine"]),
        "schedule.learning_rate": trial.suggest_float("learning rate", 1e-4, 3e-2, log=True),
        "model.dropout_rate": trial.suggest_float("dropout", 0.0, 0.5),
        "label_smoothing": trial.suggest_float("label smoothing", 0.0, 0.2),
        "optimizer.name": trial.suggest_categorical("optimizer", ["adam", "sgd"]),
    }
    if fields["optimizer.name"] == "sgd":  # A parameter that only some trials have.
        fields["optimizer.momentum"] = trial.suggest_float("momentum", 0.5, 0.99)
    return fields

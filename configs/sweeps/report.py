"""The reference report's five tables: EfficientNet on Adience, one setting varied at a time.

agenet sweep --sweep=report --workdir=runs/sweep --config.init=runs/imdb_wiki

B0, or another variant after a colon; without --config.init from ImageNet weights. The report's
figures are of validation data, in per cent; its split of Adience is not documented. Its default
setting had sigmoid units for gender. Its extra layers are pooling, batch normalisation and
dropout, so there is no dropout without them.

Two CPU cores, lite0 with --config.init=default --config.input.crop_size=128: all eight runs took
186 s, 1.43 times the first, which computes the features for all.
"""

from typing import Any

_EXTRA_LAYERS = {"model.extra_layers": True, "model.dropout_rate": 0.2}


def get_sweep(arch: str = "b0") -> dict[str, Any]:
    """A base config, fields that all runs change, and tables of named variants.

    A variant has `name`, `fields` and whatever was `reported` for it; the same settings in
    several tables are one run.
    """
    default = {"gender": 97.55, "age": 67.14}
    return {
        "config": f"configs/effnet_adience.py:{arch}",
        # Losses of sigmoid units and of a softmax do not compare; accuracies do.
        "fields": {
            "heads.gender": "sigmoid",
            "best": "validation/accuracy",
            "model.dropout_rate": 0.0,
            "trackers": (),  # The tables are what counts.
        },
        "source": "the reference report's hyper-parameter tables, on its validation data",
        "tables": {
            "Batch size": [
                _variant("32", {"batch_size": 32}, {"gender": 97.19, "age": 61.16}),
                _variant("64", {"batch_size": 64}, {"gender": 97.42, "age": 66.52}),
                _variant("128", {"batch_size": 128}, "out of memory"),
            ],
            "Optimizer": [
                _variant("Adam", {"optimizer.name": "adam"}, default),
                _variant("SGD", {"optimizer.name": "sgd"}, {"gender": 92.57, "age": 57.57}),
            ],
            "Learning rate": [
                _variant("schedule", _rate("piecewise_epochs", 0.001), default),
                _variant("0.001", _rate("constant", 0.001), {"gender": 96.66, "age": 65.34}),
                _variant("0.01", _rate("constant", 0.01), {"gender": 93.27, "age": 42.98}),
            ],
            "Gender head": [
                _variant("softmax", {"heads.gender": "softmax"}, {"gender": 97.25, "age": 67.74}),
                _variant("sigmoid", {"heads.gender": "sigmoid"}, default),
            ],
            "Extra layers": [
                _variant("with", _EXTRA_LAYERS, {"gender": 94.14, "age": 52.23}),
                _variant("without", {"model.extra_layers": False}, default),
            ],
        },
    }


def _variant(name: str, fields: dict[str, Any], reported: dict[str, float] | str) -> dict[str, Any]:
    return {"name": name, "fields": fields, "reported": reported}


def _rate(schedule: str, learning_rate: float) -> dict[str, Any]:
    return {"schedule.name": schedule, "schedule.learning_rate": learning_rate}

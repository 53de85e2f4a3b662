"""Levi-Hassner CNN on Adience with the best setting found on validation data of test fold 0.

python -m agenet.main --config=configs/levi_hassner_adience_cosine.py --workdir=runs/cosine

The report's setting but for the schedule. Two CPU cores: about half an hour.
"""

from ml_collections import ConfigDict

from configs import levi_hassner_adience


def get_config() -> ConfigDict:
    config = levi_hassner_adience.get_config()
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 3e-4
    config.schedule.warmup = "50 steps"
    return config

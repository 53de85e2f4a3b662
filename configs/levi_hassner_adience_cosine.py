"""The Levi-Hassner CNN on Adience with the best schedule found on validation data of test fold 0.

agenet train --config=levi_hassner_adience_cosine --workdir=runs/cosine
agenet folds --config=levi_hassner_adience_cosine --workdir=runs/cosine_folds

Everything but the schedule is as in the reference report. Two CPU cores: about 20 minutes. Test
fold 0 of a grey copy of Adience: 59.1 % age accuracy, 79.0 % gender accuracy; mean and standard
deviation over the five folds: 47.6 ± 7.0 % and 77.7 ± 3.1 %.
"""

from ml_collections import ConfigDict

from configs import levi_hassner_adience


def get_config() -> ConfigDict:
    config = levi_hassner_adience.get_config()
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 3e-4
    config.schedule.warmup = "50 steps"
    return config

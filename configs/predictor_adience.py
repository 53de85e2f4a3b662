"""The weights that come with agenet, trained on as a whole on Adience.

python -m agenet.main --config=configs/predictor_adience.py --workdir=runs/adience
agenet folds --config=configs/predictor_adience.py --workdir=runs/adience

They have seen FairFace, nobody of Adience. The heads stay: the one for age, a distribution over
years, learns from Adience's ranges of years what it learnt from FairFace's.
"""

from ml_collections import ConfigDict

from configs import predictor


def get_config() -> ConfigDict:
    config = predictor.get_config()
    config.dataset.name = "adience/faces"
    config.dataset.validation_fraction = 0.1
    config.init = "default"
    config.new_parts = ""
    config.duration = "2 epochs"
    config.schedule.learning_rate = 4e-4
    config.schedule.warmup = "50 steps"
    return config

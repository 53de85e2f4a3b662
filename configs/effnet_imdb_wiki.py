"""EfficientNet from ImageNet weights on 60,000 faces of IMDb-Wiki, all of it trained.

B0, or another after a colon. What it learns is taken to Adience afterwards.

agenet prepare imdb_wiki --config=subset_60k --manual_dir=FOLDER
python -m agenet.main --config=configs/effnet_imdb_wiki.py --workdir=runs/imdb_wiki
python -m agenet.main --config=configs/effnet_adience.py --workdir=runs/effnet \
    --config.init=runs/imdb_wiki

Both heads, augmentation and choice of the best state as in the reference report, whose figures on
validation data were 96.44 % gender and 61.93 % age. Without a download of weights:
--config=configs/effnet_imdb_wiki.py:lite0, and configs/effnet_adience.py:lite0 after it.
"""

from ml_collections import ConfigDict

from configs import effnet_adience


def get_config(arch: str = "b0") -> ConfigDict:
    config = effnet_adience.get_config(arch)
    config.dataset.name = "imdb_wiki/subset_60k"
    config.freeze = "none"
    config.augment.shift = 0.03125
    config.augment.scale = 0.20
    config.augment.rotate = 20.0
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.best = "validation/accuracy"
    return config

"""EfficientNet on 60,000 faces of IMDb-Wiki, fine-tuned as a whole from ImageNet weights.

The result is the initial backbone for Adience. B0, or another variant after a colon.

agenet prepare imdb_wiki --config=subset_60k --manual_dir=FOLDER
agenet train --config=effnet_imdb_wiki --workdir=runs/imdb_wiki
agenet train --config=effnet_adience --workdir=runs/effnet --config.init=runs/imdb_wiki

Heads, augmentation and the choice of the best state are those of the reference report, whose
validation accuracies were 96.44 % for gender and 61.93 % for age; it trained this and the heads on
Adience in 1,830 s. Without a download of weights: --config=effnet_imdb_wiki:lite0, and
--config=effnet_adience:lite0 after it.
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

"""EfficientNet on FairFace, fine-tuned as a whole from ImageNet weights.

The result is the initial backbone for Adience. B0, or another variant after a colon. FairFace is
open to everybody, IMDb-Wiki is not.

agenet prepare fairface --config=partial --manual_dir=FOLDER
agenet train --config=effnet_fairface --workdir=runs/fairface
agenet train --config=effnet_adience --workdir=runs/effnet --config.init=runs/fairface

`partial` accepts any part of the release. For the whole release, prepared as `margin025`:
--config.dataset.name=fairface/margin025. Without a download of weights:
--config=effnet_fairface:lite0, and --config=effnet_adience:lite0 after it.
"""

from ml_collections import ConfigDict

from configs import effnet_imdb_wiki


def get_config(arch: str = "b0") -> ConfigDict:
    config = effnet_imdb_wiki.get_config(arch)
    config.dataset.name = "fairface/partial"
    return config

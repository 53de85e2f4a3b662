"""EfficientNet from ImageNet weights on FairFace, all of it trained.

B0, or another after a colon. What it learns is taken to Adience afterwards; FairFace is open to
everybody, IMDb-Wiki is not.

agenet prepare fairface --config=partial --manual_dir=FOLDER
python -m agenet.main --config=configs/effnet_fairface.py --workdir=runs/fairface
python -m agenet.main --config=configs/effnet_adience.py --workdir=runs/effnet \
    --config.init=runs/fairface

`partial` takes whatever part of the release is there. With the whole of it, prepared as
`margin025`: --config.dataset.name=fairface/margin025. Without a download of weights:
--config=configs/effnet_fairface.py:lite0, and configs/effnet_adience.py:lite0 after it.
"""

from ml_collections import ConfigDict

from configs import effnet_imdb_wiki


def get_config(arch: str = "b0") -> ConfigDict:
    config = effnet_imdb_wiki.get_config(arch)
    config.dataset.name = "fairface/partial"
    return config

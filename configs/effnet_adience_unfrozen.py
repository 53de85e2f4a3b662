"""EfficientNet after configs/effnet_adience.py: trained on as a whole, at a small rate.

The reference report did not do this.

python -m agenet.main --config=configs/effnet_adience.py --workdir=runs/effnet \
    --config.init=runs/imdb_wiki
python -m agenet.main --config=configs/effnet_adience_unfrozen.py --workdir=runs/unfrozen \
    --config.init=runs/effnet

B0, or another after a colon, the same one in both. Test fold, seed and labels must be those of the
first run, or else faces that it was trained on are tested. Over the folds:

agenet folds --config=configs/effnet_adience.py --workdir=runs/effnet \
    --config.init=runs/imdb_wiki
agenet folds --config=configs/effnet_adience_unfrozen.py --workdir=runs/unfrozen \
    --config.init=runs/effnet/fold_{fold}
"""

from ml_collections import ConfigDict

from configs import effnet_adience


def get_config(arch: str = "b0") -> ConfigDict:
    config = effnet_adience.get_config(arch)
    config.init = "runs/effnet"
    config.new_parts = ""
    config.freeze = "none"
    config.schedule.learning_rate = 1e-4
    return config

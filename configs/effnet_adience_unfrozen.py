"""EfficientNet on Adience, continued from effnet_adience.py: the whole network, at a small rate.

The reference report did not do this.

agenet train --config=effnet_adience --workdir=runs/effnet --config.init=runs/imdb_wiki
agenet train --config=effnet_adience_unfrozen --workdir=runs/unfrozen --config.init=runs/effnet

B0, or another variant after a colon, the same one in both. Test fold, seed and labels must be
those of the first run: otherwise the test would include subjects of its training data. Over the
folds:

agenet folds --config=effnet_adience --workdir=runs/effnet --config.init=runs/imdb_wiki
agenet folds --config=effnet_adience_unfrozen --workdir=runs/unfrozen \
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

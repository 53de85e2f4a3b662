"""The Levi-Hassner CNN on Adience with the reference report's settings, both tasks on one backbone.

agenet train --config=levi_hassner_adience --workdir=runs/levi_hassner

Two CPU cores that other programs used, too: 44 minutes. Test fold 0 of a grey copy of Adience:
56.9 % age accuracy, 77.9 % gender accuracy. The reference report, which does not document its
split: 42.62 % and 68.04 %.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    return default.get_config()

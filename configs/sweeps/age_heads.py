"""Ways to tell an age, on EfficientNet's frozen features of Adience: groups, years, ordered years.

agenet sweep --sweep=configs/sweeps/age_heads.py --workdir=runs/age_heads \
    --config.init=runs/fairface

B0, or another after a colon. The best state of each run is that of the highest accuracy in the age
groups, which all of them can be asked for.
"""

from typing import Any


def get_sweep(arch: str = "b0") -> dict[str, Any]:
    return {
        "config": f"configs/effnet_adience.py:{arch}",
        "fields": {"best": "validation/age_accuracy", "tensorboard": False},
        "tables": {
            "Age head": [
                {"name": head, "fields": {"heads.age": head}}
                for head in ("groups", "distribution", "ordinal")
            ],
        },
    }

"""Settings of the network. `configs/default.py` documents every field and states its default."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

_Rate = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class ModelConfig:
    """Which network, its options, and the precision of its computation."""

    name: str
    flavour: str
    dropout_rate: _Rate
    drop_path_rate: _Rate
    extra_layers: bool
    dtype: Literal["float32", "bfloat16"]

"""Settings of the data: the data set and its splits, the size of images, augmentation.

`configs/default.py` documents every field and states its default.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

# Magnitudes of RandAugment are counted up to this, as in torchvision.
MAX_MAGNITUDE = 30.0

AgeLabels = Literal["official", "extended"]
Protocol = Literal["subject", "random"]
Placement = Literal["auto", "device", "host", "stream"]
Sampling = Literal["uniform", "class_balanced", "age_balanced"]

_Probability = Annotated[float, Interval(ge=0, le=1)]
_RGB = tuple[float, ...]


@dataclass(frozen=True)
class DatasetConfig:
    """Which data sets are used, and how they are divided into training, validation and test."""

    name: str
    extra: str
    data_dir: str
    prepare: bool
    labels: AgeLabels
    protocol: Protocol
    test_fold: int
    validation_fraction: Annotated[float, Interval(gt=0, lt=1)]
    sampling: Sampling  # of training faces, see `agenet.data.order.balanced_order`

    @property
    def names(self) -> list[str]:
        """The data sets to train on; the first one is also validated and tested on."""
        return [self.name, *filter(None, map(str.strip, self.extra.split(",")))]


@dataclass(frozen=True)
class InputConfig:
    """Sizes in pixels, normalisation (RGB, 0 to 255) and memory of the images."""

    size: Annotated[int, Ge(0)]
    crop_size: Annotated[int, Ge(0)]
    mean: _RGB
    std: _RGB
    placement: Placement


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images, drawn independently for each image.

    The parameters have the meaning of ShiftScaleRotate, RandomBrightnessContrast and
    HorizontalFlip in Albumentations, see `agenet.data.warp` and
    `agenet.data.augment.brightness_contrast`, and are drawn uniformly up to their limits in either
    direction. For ShiftScaleRotate this is the meaning before version 2, which began to round
    shifts and to scale width and height separately, with a black border or, with probability
    `repeat_edge`, BORDER_REPLICATE. `grey` and `low_resolution` are probabilities: of ToGray, and
    of `agenet.data.augment.reduce_resolution` by a random amount.
    """

    crop: Literal["random", "center"] = "random"
    flip: _Probability = 0.5
    shift: _Probability = 0.0  # of the size of a crop
    scale: Annotated[float, Interval(ge=0, le=0.99)] = 0.0  # around a factor of 1
    rotate: Annotated[float, Interval(ge=0, le=180)] = 0.0  # degrees
    warp_probability: _Probability = 1.0  # of shift, scale and rotate together
    repeat_edge: _Probability = 0.0  # of repeating the image's edge beyond it instead of black
    brightness: _Probability = 0.0  # of the largest value, 255
    contrast: _Probability = 0.0  # around a factor of 1
    color_probability: _Probability = 0.5  # of brightness and contrast together
    grey: _Probability = 0.0  # of removing the colours
    low_resolution: _Probability = 0.0  # of removing details, down to a quarter of the pixels
    # See `agenet.data.randaugment`: the number of operations, and their magnitude.
    randaugment: Annotated[int, Interval(ge=0, le=10)] = 0
    randaugment_magnitude: Annotated[float, Interval(ge=0, le=MAX_MAGNITUDE)] = 9.0
    # See `agenet.data.augment.random_erase`.
    erase: _Probability = 0.0
    erase_area: Annotated[float, Interval(gt=0, le=1)] = 0.33  # the largest share of the image
    # Alphas of mixup and CutMix, which are part of the training step, see `agenet.training.mixing`.
    mixup: Annotated[float, Interval(ge=0, le=100)] = 0.0
    cutmix: Annotated[float, Interval(ge=0, le=100)] = 0.0

    @property
    def warps(self) -> bool:
        return max(self.shift, self.scale, self.rotate) > 0 and self.warp_probability > 0

    @property
    def recolors(self) -> bool:
        return max(self.brightness, self.contrast) > 0 and self.color_probability > 0

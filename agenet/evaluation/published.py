"""Published results on Adience, and the limits of all results."""

from collections.abc import Mapping
from typing import Any

# System and accuracy in per cent on Adience for age, age 1-off and gender, as the sources print
# them; the first row was counted from the fold lists.
PUBLISHED = (
    ("Always the largest class", "28.4", "–", "53.5"),
    ("Levi & Hassner 2015 [1], single crop", "49.5", "84.6", "85.9"),
    ("Levi & Hassner 2015 [1], over-sampling", "50.7", "84.7", "86.8"),
    ("DEX, VGG-16 from ImageNet [2]", "55.6", "89.7", "–"),
    ("DEX, VGG-16 from IMDb-Wiki [2]", "64.0", "96.6", "–"),
    ("Reference report: Levi-Hassner CNN, 5 epochs [3]", "42.62", "–", "68.04"),
    ("Reference report: ResNet-50, frozen, 5 epochs [3]", "52.36", "–", "76.29"),
    ("Reference report: EfficientNet-B0 from IMDb-Wiki [3]", "67.14", "–", "97.55"),
)
SOURCES = (
    'Levi & Hassner, "Age and Gender Classification Using Convolutional Neural Networks", CVPR '
    "Workshops 2015.",
    'Rothe, Timofte & Van Gool, "Deep Expectation of Real and Apparent Age from a Single Image '
    'Without Facial Landmarks", IJCV 2018.',
    "The report whose experiments this project repeats. How it split the data is not documented; "
    "on Adience, gender accuracies of 96 to 98 % come from splits over images, which show the "
    "test's persons in training, or from outside data.",
)
FOLDS_DIFFER = "folds differ: the original age network reached 54, 44, 54, 46 and 49 on the five."
# The reference report's final tables: network, and for age and gender accuracy in per cent, loss
# and seconds. The EfficientNet has both heads, and one time.
Result = tuple[str, str, float]
REFERENCE: tuple[tuple[str, Result, Result], ...] = (
    ("Levi-Hassner CNN, 5 epochs", ("42.62", "1.5805", 6914.0), ("68.04", "0.5980", 3958.0)),
    ("ResNet-50, frozen, 5 epochs", ("52.36", "1.5068", 8464.0), ("76.29", "0.4866", 5441.0)),
    (
        "EfficientNet-B0, IMDb-Wiki (60,000), then new heads on Adience",
        ("67.14", "0.8037", 1830.0),
        ("97.55", "0.0674", 1830.0),
    ),
)
LIMITS = """\
Labels are what annotators saw in an image, not how people describe themselves; gender has only \
two classes, and age groups have gaps between them. Errors are not spread evenly: the tables by \
class show which groups have lower accuracy, and accuracy may also be lower for groups without a \
label here, such as those by skin colour. Results hold for images like those of this data set. \
Do not base decisions about people on them."""


def on_adience(dataset: Mapping[str, Any]) -> bool:
    """Whether `dataset` of a report is the one that `PUBLISHED` is about, tested in full."""
    name: str = dataset["name"]
    return name.startswith("adience") and not dataset["notice"]

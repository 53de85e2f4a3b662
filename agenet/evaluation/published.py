"""Published figures on Adience to stand beside a run's own, and what no figure can say."""

from collections.abc import Mapping
from typing import Any

# System, age exact, age 1-off, gender, in per cent on Adience as the sources print them; the
# first row was counted from the fold lists.
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
Labels are what annotators saw in a picture, not what a person says of themselves; gender has \
two classes only, and age comes in groups with gaps between them. Errors are not spread evenly: \
the tables by class show which groups fare worse, and groups that carry no label here, such as \
those by skin colour, may fare worse unseen. The figures hold for pictures like those of this \
data set. They are no ground for decisions about people."""


def on_adience(dataset: Mapping[str, Any]) -> bool:
    """Whether the test of a report with this `dataset` is on the faces of `PUBLISHED`."""
    name: str = dataset["name"]
    return name.startswith("adience") and not dataset["notice"]

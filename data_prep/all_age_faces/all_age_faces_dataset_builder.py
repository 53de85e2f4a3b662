"""All-Age-Faces as a TFDS data set: faces with the age in years and the gender."""

from dataclasses import dataclass
from pathlib import Path

import tensorflow_datasets as tfds

from data_prep.builder import FaceBuilder, FaceConfig
from data_prep.release import Release

from . import release

PAGE = "https://github.com/JingchunCheng/All-Age-Faces-Dataset"
SIDE = 256


@dataclass(eq=False)
class AllAgeFacesConfig(FaceConfig):
    """Configuration of All-Age-Faces.

    Attributes:
        images: the folder of the release.
    """

    max_side: int | None = SIDE
    images: str = "original images"


class Builder(FaceBuilder):
    """All-Age-Faces (Cheng et al., 2019); the list val.txt becomes the test set."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        AllAgeFacesConfig(
            name="original", description=f"Images with some surroundings, at most {SIDE} pixels."
        ),
        AllAgeFacesConfig(
            name="aligned",
            description=f"The release's aligned faces, at most {SIDE} pixels.",
            images="aglined faces",
        ),
    ]
    HOMEPAGE = PAGE
    LICENSE = "Research use with a citation; the release states no licence."
    NOTICE = (
        "All-Age-Faces: both lists contain different images of the same persons, and copies of the "
        "same photograph, so that results on its test set are optimistic."
    )
    FEATURES = {"path": tfds.features.Text()}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Get All-Age-Faces from {PAGE} or a copy of it, and pass the folder that holds "
        '"original images" and "image sets" as --manual_dir=FOLDER.'
    )

    def _missing_files(self, folder: Path) -> list[str]:
        return release.missing_files(folder, self.builder_config.images)

    def _read_release(self, manual_dir: Path) -> Release:
        images = self.builder_config.images
        return Release(
            sources=[release.image_source(manual_dir, images)],
            splits={
                split: dict(rows) for split, rows in release.read_lists(manual_dir, images).items()
            },
        )

"""APPA-REAL as a TFDS data set: photographs with real and apparent age."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_prep.builder import FaceBuilder, FaceConfig
from data_prep.release import Release

from . import release

PAGE = "https://chalearnlap.cvc.uab.es/dataset/26/description/"
SIDE = 256


@dataclass(eq=False)
class AppaRealConfig(FaceConfig):
    """Configuration of APPA-REAL.

    Attributes:
        suffix: of the files' names in the release, after that of the photograph.
    """

    max_side: int | None = SIDE
    suffix: str = ""


class Builder(FaceBuilder):
    """APPA-REAL (Agustsson et al., 2017), with its split; age labels are the real age."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        AppaRealConfig(name="photos", description=f"Whole photographs, at most {SIDE} pixels."),
        AppaRealConfig(
            name="faces",
            description=f"The release's own face crops, at most {SIDE} pixels.",
            suffix="_face.jpg",
        ),
    ]
    HOMEPAGE = PAGE
    LICENSE = "Research use; the photographs are their authors'."
    FEATURES = {
        "path": tfds.features.Text(),
        "split": tfds.features.Text(),
        "apparent_age": tfds.features.Scalar(np.float32),
        "apparent_age_std": tfds.features.Scalar(np.float32),
        "ethnicity": tfds.features.Text(),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Download APPA-REAL from {PAGE}, and pass the folder that holds train, valid, test and "
        "the tables gt_avg_train.csv, gt_avg_valid.csv and gt_avg_test.csv as --manual_dir=FOLDER."
    )

    def _missing_files(self, folder: Path) -> list[str]:
        return release.missing_files(folder)

    def _read_release(self, manual_dir: Path) -> Release:
        sources: list[Path] = []
        splits: dict[str, dict[str, Any]] = {"train": {}, "test": {}}
        unknown = 0
        for part, split in release.SPLIT_OF.items():
            folder = release.image_folder(manual_dir, part)
            assert folder
            sources.append(folder)
            for name, labels in release.read_labels(manual_dir, part).items():
                path = f"{folder.name}/{name}{self.builder_config.suffix}"
                splits[split][path] = release.Photo(path, labels)
                unknown += labels.gender < 0
        summary = [f"no gender: {unknown:,} images"] if unknown else []
        return Release(sources=sources, splits=splits, summary=summary)

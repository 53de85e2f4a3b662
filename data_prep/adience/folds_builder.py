"""The base class of builders for Adience and data sets in the layout of Adience."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from agenet.labels import adience_age_group, adience_age_range, adience_gender
from data_prep.builder import FaceBuilder, FaceConfig
from data_prep.release import Release

from . import release


@dataclass(eq=False)
class FoldsConfig(FaceConfig):
    """Configuration of a data set with folds.

    Attributes:
        kind: archive and folder of the release, "faces" or "aligned".
    """

    kind: str = "faces"


class FoldsBuilder(FaceBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds five splits, `fold_0` to `fold_4`."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.1.0": "The age as a range of years, `age_low` and `age_high`.",
        "1.0.0": "First version.",
    }
    FEATURES = {
        "original_image": tfds.features.Text(),
        "user_id": tfds.features.Text(),
        "age": tfds.features.Text(),
        "yaw": tfds.features.Scalar(np.float32),
    }

    def _missing_files(self, folder: Path) -> list[str]:
        return release.missing_files(folder, self.builder_config.kind)

    def _read_release(self, manual_dir: Path) -> Release:
        kind = self.builder_config.kind
        folds, duplicates = release.read_fold_lists(manual_dir)
        dropped = f"left out: {duplicates} rows that are exact duplicates"
        return Release(
            sources=[release.image_source(manual_dir, kind)],
            splits={
                f"fold_{number}": {face.path(kind): face for face in faces}
                for number, faces in enumerate(folds)
            },
            metadata={"duplicate_rows_dropped": duplicates},
            summary=[dropped] if duplicates else [],
        )

    def _features(self, row: release.Face) -> dict[str, Any]:
        age_low, age_high = adience_age_range(row.age)
        return {
            "original_image": row.original_image,
            "user_id": row.user_id,
            "subject_id": row.face_id,
            "age": row.age,
            "age_official": adience_age_group(row.age, "official"),
            "age_extended": adience_age_group(row.age, "extended"),
            "age_low": age_low,
            "age_high": age_high,
            "gender": adience_gender(row.gender),
            "yaw": row.yaw,
        }

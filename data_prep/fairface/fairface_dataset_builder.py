"""FairFace as a TFDS data set: faces with age range, gender and race."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from agenet.errors import UserError
from data_prep.builder import FaceBuilder, FaceConfig
from data_prep.release import MAX_LEFT_OUT, Release

from . import release

PAGE = "https://github.com/joojs/fairface"
SIDE = 256
_ADVICE = ", or use --config=partial for a part of it"


@dataclass(eq=False)
class FairFaceConfig(FaceConfig):
    """Configuration of FairFace.

    Attributes:
        margin: around the face, as in the names of the archives.
        partial: whether any part of the release is accepted.
    """

    max_side: int | None = SIDE
    margin: str = "025"
    partial: bool = False


class Builder(FaceBuilder):
    """FairFace (Karkkainen & Joo, 2021); its validation set becomes the test set."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        FairFaceConfig(
            name="margin025",
            description="Faces with a margin of 0.25, files as released, 224 pixels.",
        ),
        FairFaceConfig(
            name="margin125",
            description=f"Faces with a margin of 1.25, {SIDE} pixels.",
            margin="125",
        ),
        FairFaceConfig(
            name="partial",
            description="Faces with a margin of 0.25, from any part of the release.",
            partial=True,
        ),
    ]
    HOMEPAGE = PAGE
    LICENSE = "CC BY 4.0"
    FEATURES = {
        "path": tfds.features.Text(),
        "age": tfds.features.Text(),
        # Index into agenet.labels.RACES, for the evaluation of fairness only.
        "race": tfds.features.Scalar(np.int64),
        "service_test": tfds.features.Scalar(np.bool_),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Download the images and both tables of labels from {PAGE} into one folder, and pass it "
        "as --manual_dir=FOLDER."
    )

    def _missing_files(self, folder: Path) -> list[str]:
        lacking = [
            release.missing_files(folder, split, self.builder_config.margin)
            for split in release.SPLITS
        ]
        if self.builder_config.partial and not all(lacking):
            return []
        return list(dict.fromkeys(name for names in lacking for name in names))

    def _read_release(self, manual_dir: Path) -> Release:
        margin = self.builder_config.margin
        sources: dict[Path, None] = {}
        splits = {}
        for split in release.SPLITS:
            source = release.image_source(manual_dir, split, margin)
            if source and not release.missing_files(manual_dir, split, margin):
                sources[source] = None
                splits[split] = release.read_labels(manual_dir, split)
                self._check_whole(manual_dir, split, len(splits[split]))
        return Release(list(sources), splits, partial=self.builder_config.partial, advice=_ADVICE)

    def _check_whole(self, manual_dir: Path, split: str, rows: int) -> None:
        released = release.RELEASED[split]
        if not self.builder_config.partial and rows < (1 - MAX_LEFT_OUT) * released:
            raise UserError(
                f"{release.label_file(manual_dir, split)}: {rows:,} rows, where the release has "
                f"{released:,}: download it again{_ADVICE}"
            )

    def _kept(self, splits: dict[str, list[release.Face]]) -> None:
        """Adds a notice with the size of a partial copy."""
        counts = [(split, len(splits.get(split, ())), n) for split, n in release.RELEASED.items()]
        if any(kept < (1 - MAX_LEFT_OUT) * released for _, kept, released in counts):
            parts = [f"{kept:,} of {n:,} {split} images" for split, kept, n in counts]
            self.info.metadata["notice"] = f"A part of FairFace: {' and '.join(parts)}."

"""Drawn faces as a TFDS data set, read by the code that reads Adience."""

from pathlib import Path

from agenet.errors import UserError
from data_prep.adience import release
from data_prep.adience.folds_builder import FoldsBuilder, FoldsConfig
from data_prep.drawn_faces.release import write_release


class Builder(FoldsBuilder):
    """Drawn faces in the layout of Adience; they show no real persons."""

    BUILDER_CONFIGS = [
        FoldsConfig(
            name="faces",
            description="Drawn faces, files as drawn, 128 pixels.",
            kind="faces",
        ),
    ]
    NOTICE = "Drawn faces, not photographs: results on them say nothing about real faces."
    LICENSE = "Apache-2.0"
    GENERATES_RELEASE = True
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Drawn faces come from: agenet prepare drawn_faces, which draws them into an empty folder."
    )

    def ensure_release(self, manual_dir: Path) -> None:
        """Draws the release into `manual_dir` unless it contains one.

        Raises:
            UserError: the release there is incomplete, or is not of drawn faces.
        """
        lists = (release.fold_list(manual_dir, fold) for fold in range(release.FOLDS))
        images = release.image_source(manual_dir, "faces")
        if not any(path.exists() for path in (images, *lists)):
            write_release(manual_dir)
        self._check_release(manual_dir)

    def _check_release(self, manual_dir: Path) -> None:
        super()._check_release(manual_dir)
        folds, _ = release.read_fold_lists(manual_dir)
        # Real faces must never be labelled as drawn ones.
        if not all(face.user_id.startswith("drawn-") for faces in folds for face in faces):
            raise UserError(
                f"the release in {manual_dir} is not one of drawn faces: give another folder "
                "with --manual_dir, or none"
            )

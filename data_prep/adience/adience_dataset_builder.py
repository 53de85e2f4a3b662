"""Adience as a TFDS data set: five subject-exclusive folds of faces."""

from .folds_builder import FoldsBuilder, FoldsConfig

PAGE = "https://talhassner.github.io/home/projects/Adience/Adience-data.html"
SIDE = 256


class Builder(FoldsBuilder):
    """Adience (Eidinger, Enbar & Hassner, 2014), with the labels of its fold lists."""

    BUILDER_CONFIGS = [
        FoldsConfig(
            name="faces",
            description=f"Roughly aligned faces, shorter side at most {SIDE} pixels.",
            kind="faces",
            max_side=SIDE,
        ),
        FoldsConfig(
            name="aligned",
            description=f"Faces aligned by landmarks, shorter side at most {SIDE} pixels.",
            kind="aligned",
            max_side=SIDE,
        ),
        FoldsConfig(
            name="faces_full",
            description="Roughly aligned faces, files as released.",
            kind="faces",
        ),
        FoldsConfig(
            name="aligned_full",
            description="Faces aligned by landmarks, files as released.",
            kind="aligned",
        ),
    ]
    HOMEPAGE = PAGE
    LICENSE = "Research use; the photographs are their authors', under Creative Commons licences."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Adience is available from the Open University of Israel: fill in the access form at "
        f"{PAGE}, download the archive and the five fold lists into one folder, and pass it as "
        "--manual_dir=FOLDER."
    )

"""Creates face detectors by name: YuNet, or dlib's HOG."""

import difflib
from pathlib import Path

from agenet.errors import UserError
from agenet.faces.crop import GEOMETRIES
from agenet.faces.face import Detector
from agenet.faces.hog import Hog
from agenet.faces.yunet import YuNet
from agenet.files import expand_home

NAMES = ("auto", "yunet", "hog")
_ACCEPTED = f"{', '.join(NAMES)}, the path of a YuNet ONNX file"


def create_detector(
    detector: str | Path | Detector = "auto", threads: int | None = None
) -> Detector:
    """Creates a detector, which several threads may use if it is not one of the caller's own.

    Args:
        detector: "yunet", "hog", "auto" (YuNet), the path of a YuNet ONNX file, or a detector,
            which is returned.
        threads: that YuNet uses for one search, see `YuNet`; dlib uses one.

    Raises:
        UserError: it is none of these, or is not available on this machine.
    """
    if not isinstance(detector, str | Path):
        return _checked(detector)
    if detector in ("auto", "yunet"):
        return YuNet(threads=threads)
    if detector == "hog":
        return Hog()
    path = expand_home(detector)
    if path.exists() or path.suffix == ".onnx" or len(path.parts) > 1:
        return YuNet(path, threads)
    nearest = difflib.get_close_matches(str(detector).lower(), NAMES, n=2)
    did_you_mean = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
    raise UserError(f'face detector "{detector}" is not one of {_ACCEPTED}{did_you_mean}')


def _checked(detector: Detector) -> Detector:
    name, detect = getattr(detector, "name", None), getattr(detector, "detect", None)
    if not isinstance(name, str) or not callable(detect):
        raise UserError(
            f"a face detector must be {_ACCEPTED}, or an object with a name and a method "
            f"detect(image), not {str(detector)[:200]!r}"
        )
    if name not in GEOMETRIES:
        raise UserError(
            f'face detector "{name[:200]}": crops are known only for boxes like those of '
            f"{' and '.join(GEOMETRIES)}: give it the name of the one that its boxes resemble"
        )
    return detector

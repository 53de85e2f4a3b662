"""Creates face detectors by name: YuNet, dlib's HOG, or the better one that is available."""

import difflib
import logging
from pathlib import Path

from agenet.errors import UserError
from agenet.faces.crop import GEOMETRIES
from agenet.faces.face import Detector
from agenet.faces.hog import Hog
from agenet.faces.yunet import YuNet, find_yunet

log = logging.getLogger(__name__)

NAMES = ("auto", "yunet", "hog")
_ACCEPTED = f"{', '.join(NAMES)}, the path of a YuNet ONNX file"

# Why YuNet's file is not available; the download is attempted once per process.
_yunet_error: UserError | None = None


def create_detector(
    detector: str | Path | Detector = "auto", threads: int | None = None
) -> Detector:
    """Creates a detector for use in one thread.

    Args:
        detector: "yunet", "hog", "auto" (YuNet if its file is cached or can be downloaded, else
            HOG with a warning), the path of a YuNet ONNX file, or a detector, which is returned.

    Raises:
        UserError: it is none of these, or is not available on this machine.
    """
    if not isinstance(detector, str | Path):
        return _checked(detector)
    if detector == "auto":
        return _yunet_or_hog()
    if detector == "yunet":
        return YuNet()
    if detector == "hog":
        return Hog()
    path = Path(detector).expanduser()
    if path.exists() or path.suffix == ".onnx" or len(path.parts) > 1:
        return YuNet(path)
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


def _yunet_or_hog() -> Detector:
    global _yunet_error
    if _yunet_error is None:
        try:
            return YuNet(find_yunet())
        except UserError as error:
            _yunet_error = error
            try:
                detector = Hog()
            except UserError as hog_error:
                raise UserError(f"no face detector: {error}; and {hog_error}") from error
            log.warning(
                "using dlib's HOG face detector, which misses small and turned faces, instead of "
                "YuNet: %s",
                error,
            )
            return detector
    return Hog()

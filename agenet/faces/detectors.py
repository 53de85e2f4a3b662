"""The face detectors by name, and the choice among them."""

import difflib
import logging
from pathlib import Path

from agenet.errors import UserError
from agenet.faces.face import Detector
from agenet.faces.hog import Hog
from agenet.faces.yunet import YuNet, find_yunet

log = logging.getLogger(__name__)

NAMES = ("auto", "yunet", "hog")

# Why YuNet's file could not be had; asked for once per process.
_why_not: UserError | None = None


def find_detector(name: str = "auto") -> Detector:
    """A detector, for one thread.

    Args:
        name: "yunet", "hog", "auto" (YuNet where its file is there or can be fetched, or else HOG,
            which is said in a warning), or the path of YuNet's file.

    Raises:
        UserError: it is none of these, or cannot be had.
    """
    if name == "auto":
        return _yunet_or_hog()
    if name == "yunet":
        return YuNet()
    if name == "hog":
        return Hog()
    path = Path(name).expanduser()
    if path.exists() or path.suffix == ".onnx" or len(path.parts) > 1:
        return YuNet(path)
    nearest = difflib.get_close_matches(name.lower(), NAMES, n=2)
    did_you_mean = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
    raise UserError(
        f'face detector "{name}" is none of {", ".join(NAMES)}, nor a file of YuNet{did_you_mean}'
    )


def _yunet_or_hog() -> Detector:
    global _why_not
    if _why_not is None:
        try:
            return YuNet(find_yunet())
        except UserError as error:
            _why_not = error
            try:
                detector = Hog()
            except UserError as no_hog:
                raise UserError(f"no face detector: {error}; and {no_hog}") from error
            log.warning(
                "dlib's HOG, which misses small and turned faces, takes the place of YuNet: %s",
                error,
            )
            return detector
    return Hog()

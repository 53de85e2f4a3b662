"""Measures how detected boxes and landmarks lie in FairFace images, for `agenet.faces.crop`.

python scripts/measure_margins.py FAIRFACE_VAL_TAR [--count=1000] [--seed=0]

FAIRFACE_VAL_TAR is a tar file of FairFace images with a margin of 0.25. Each is placed in a grey
image at a random size and position, because detectors draw larger boxes around faces with a
background than around faces that fill the image, and dlib's boxes have few sizes and positions.
"""

import argparse
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.faces.crop import Square, face_square
from agenet.faces.detectors import create_detector
from agenet.faces.face import Box, Detection
from agenet.faces.hog import TURNED, Hog, to_detection
from scripts.measure_detectors import nearest, place


def main() -> None:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tar", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--yunet", default="yunet", help="its file; by default the bundled one")
    with one_line_errors():
        args = parser.parse_args()
        yunet = list(_detect(create_detector(args.yunet).detect, args.tar, args.count, args.seed))
        print(f"yunet: {len(yunet)} of {args.count} found")
        _report("yunet", yunet)
        raw = list(_detect(Hog().search, args.tar, args.count, args.seed))
        print(f"hog: {len(raw)} of {args.count} found")
        for name, turned in (("frontal", False), ("turned", True)):
            print(f"  dlib's boxes, {name}:")
            _report_boxes([(f.box, side) for f, side in raw if (f.filter in TURNED) == turned])
        _report("hog", [(to_detection(found), side) for found, side in raw])


def _detect(
    detect: Callable[[np.ndarray], Sequence[Any]], tar: Path, count: int, seed: int
) -> Iterator[tuple[Any, Square]]:
    """Yields the faces that are found, and where their FairFace images lie."""
    rng = np.random.default_rng(seed)
    with tarfile.open(tar) as archive:
        members = sorted(
            (member for member in archive if member.name.endswith(".jpg")), key=lambda m: m.name
        )
        for index in rng.choice(len(members), count, replace=False):
            file = archive.extractfile(members[index])
            if file is None:
                continue
            image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
            if image is None:
                raise UserError(f"{members[index].name} is not an image")
            larger, square = place(image, rng)
            if (face := nearest(detect(larger), square)) is not None:
                yield face, square


def _report(name: str, found: list[tuple[Detection, Square]]) -> None:
    """Prints medians and means, with the spread (standard deviation) between images."""
    _report_boxes([(face.box, square) for face, square in found])
    if found[0][0].landmarks is not None:
        points = np.array([(np.array(face.landmarks) - (s.x, s.y)) / s.side for face, s in found])
        # Averaged with the mirrored faces, so that the result is symmetric.
        mirrored = points[:, [1, 0, 2, 4, 3]] * [-1, 1]
        mean = (points.mean(0) + mirrored.mean(0)) / 2 + 0.5
        print("  landmarks", np.round(mean, 3).tolist())
        print("     spread", np.round(points.std(0), 3).tolist())
    for align in (False, True) if name == "yunet" else (False,):
        fitted = [face_square(face, name, align=align) for face, _ in found]
        errors = [_corner_error(*pair) for pair in zip(fitted, (s for _, s in found), strict=True)]
        print(
            f"  with the constants of crop.py{', aligned' if align else ''}: mean error of the "
            f"corners {np.mean(errors):.3f} of the side, median {np.median(errors):.3f}; "
            f"angle (spread) {np.degrees(np.std([s.angle for s in fitted])):.1f} degrees"
        )


def _report_boxes(found: list[tuple[Box, Square]]) -> None:
    down = np.array([(square.y - box.center[1]) / box.height for box, square in found])
    ratio = np.array([square.side / np.sqrt(box.width * box.height) for box, square in found])
    print(f"  shift down {np.median(down):.3f} (spread {down.std():.3f})")
    print(f"  size ratio {np.median(ratio):.3f} (spread {ratio.std():.3f})")


def _corner_error(square: Square, true: Square) -> float:
    """Mean distance of the corners from those of the image, as a fraction of its side."""
    corners = np.array([-1 - 1j, 1 - 1j, -1 + 1j, 1 + 1j]) / 2
    found = corners * square.side * np.exp(1j * square.angle) + square.x + 1j * square.y
    expected = corners * true.side + true.x + 1j * true.y
    return float(abs(found - expected).mean() / true.side)


if __name__ == "__main__":
    main()

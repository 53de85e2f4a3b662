"""Measures how detected boxes and landmarks lie in FairFace images, for `agenet.faces.crop`.

python scripts/measure_margins.py FAIRFACE_VAL_TAR [--count=1000] [--seed=0]

FAIRFACE_VAL_TAR is a tar file of FairFace images with a margin of 0.25. Each is placed, at a random
size, in the centre of a grey image of twice that size, because detectors draw larger boxes around
faces with a background than around faces that fill the image.
"""

import argparse
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from agenet.errors import ArgumentParser, one_line_errors
from agenet.faces.crop import Square, face_square
from agenet.faces.detectors import create_detector
from agenet.faces.face import Detection, Detector

_SIDES = (48, 224)  # pixels, of the images; their faces are about 0.9 times as large
_GREY = 100


def main() -> None:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tar", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--yunet", default="yunet", help="its file; downloaded by default")
    with one_line_errors():
        args = parser.parse_args()
        for name in (args.yunet, "hog"):
            detector = create_detector(name)
            found = list(_detect(detector, args.tar, args.count, args.seed))
            print(f"{detector.name}: {len(found)} of {args.count} found")
            _report(detector.name, found)


def _detect(
    detector: Detector, tar: Path, count: int, seed: int
) -> Iterator[tuple[Detection, float]]:
    """Yields the face nearest to the centre of each image, and the side of the FairFace image."""
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
            side = 2 * round(np.exp(rng.uniform(*np.log(_SIDES))) / 2)
            image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            edge = side // 2
            image = np.pad(image, ((edge, edge), (edge, edge), (0, 0)), constant_values=_GREY)
            faces = [
                (np.hypot(*np.subtract(f.box.center, side)), f) for f in detector.detect(image)
            ]
            distance, face = min(faces, key=lambda pair: pair[0], default=(np.inf, None))
            if face is not None and distance < side / 4:
                yield face, side


def _report(name: str, found: list[tuple[Detection, float]]) -> None:
    """Prints medians and means, with the spread (standard deviation) between images."""
    sides = np.array([side for _, side in found])
    boxes = np.array([face.box for face, _ in found])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    down = (sides - boxes[:, [1, 3]].mean(1)) / height
    ratio = sides / np.sqrt(width * height)
    print(f"  shift down {np.median(down):.3f} (spread {down.std():.3f})")
    print(f"  size ratio {np.median(ratio):.3f} (spread {ratio.std():.3f})")
    if found[0][0].landmarks is not None:
        points = np.array([face.landmarks for face, _ in found]) / sides[:, None, None] - 0.5
        # Averaged with the mirrored faces, so that the result is symmetric.
        mirrored = [1, 0] + points[:, [1, 0, 2, 4, 3]] * [-1, 1]
        mean = (points.mean(0) + mirrored.mean(0)) / 2
        print("  landmarks", np.round(mean, 3).tolist())
        print("     spread", np.round(points.std(0), 3).tolist())
    for align in (False, True) if name == "yunet" else (False,):
        squares = [face_square(face, name, align=align) for face, _ in found]
        errors = [_corner_error(s, side) for s, side in zip(squares, sides, strict=True)]
        print(
            f"  with the constants of crop.py{', aligned' if align else ''}: mean error of the "
            f"corners {np.mean(errors):.3f} of the side, median {np.median(errors):.3f}; "
            f"angle (spread) {np.degrees(np.std([s.angle for s in squares])):.1f} degrees"
        )


def _corner_error(square: Square, side: float) -> float:
    """Mean distance of the corners from those of the image, as a fraction of its side."""
    corners = np.array([-1 - 1j, 1 - 1j, -1 + 1j, 1 + 1j]) / 2
    found = corners * square.side * np.exp(1j * square.angle) + square.x + 1j * square.y
    return float(abs(found - corners * side - side * (1 + 1j)).mean() / side)


if __name__ == "__main__":
    main()

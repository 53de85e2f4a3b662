"""Measures where the face detectors find the faces of FairFace pictures, for `agenet.faces.crop`.

python scripts/measure_margins.py FAIRFACE_VAL_TAR [--count=1000] [--seed=0]

FAIRFACE_VAL_TAR is a tar file of FairFace pictures with a margin of 0.25. Each is laid, at a random
size, into the middle of a grey picture of twice that size, because detectors draw larger boxes
around faces that have surroundings than around those that fill the picture.
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

# Of the pictures; their faces are about 0.9 as large.
_SIDES = (48, 224)
_GREY = 100


def main() -> None:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tar", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--yunet", default="yunet", help="its file; by default the one fetched")
    with one_line_errors():
        args = parser.parse_args()
        for name in (args.yunet, "hog"):
            detector = create_detector(name)
            found = list(_found(detector, args.tar, args.count, args.seed))
            print(f"{detector.name}: {len(found)} of {args.count} found")
            _report(detector.name, found)


def _found(
    detector: Detector, tar: Path, count: int, seed: int
) -> Iterator[tuple[Detection, float]]:
    """The face nearest to the middle of each of the pictures, and the picture's side."""
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
    """Medians and means, with the spread (standard deviation) between pictures."""
    sides = np.array([side for _, side in found])
    boxes = np.array([face.box for face, _ in found])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    down = (sides - boxes[:, [1, 3]].mean(1)) / height
    ratio = sides / np.sqrt(width * height)
    print(f"  down {np.median(down):.3f} (spread {down.std():.3f})")
    print(f"  side {np.median(ratio):.3f} (spread {ratio.std():.3f})")
    if found[0][0].landmarks is not None:
        points = np.array([face.landmarks for face, _ in found]) / sides[:, None, None] - 0.5
        # A mirrored face is a face.
        mirrored = [1, 0] + points[:, [1, 0, 2, 4, 3]] * [-1, 1]
        mean = (points.mean(0) + mirrored.mean(0)) / 2
        print("  landmarks", np.round(mean, 3).tolist())
        print("     spread", np.round(points.std(0), 3).tolist())
    for align in (False, True) if name == "yunet" else (False,):
        squares = [face_square(face, name, align=align) for face, _ in found]
        moved = [_moved(s, side) for s, side in zip(squares, sides, strict=True)]
        print(
            f"  with the constants of crop.py{', aligned' if align else ''}: corners off by "
            f"{np.mean(moved):.3f} of the side in the mean, {np.median(moved):.3f} in the median; "
            f"angle (spread) {np.degrees(np.std([s.angle for s in squares])):.1f} degrees"
        )


def _moved(square: Square, side: float) -> float:
    """Mean distance of the corners from those of the picture, in its sides."""
    corners = np.array([-1 - 1j, 1 - 1j, -1 + 1j, 1 + 1j]) / 2
    turned = corners * square.side * np.exp(1j * square.angle) + square.x + 1j * square.y
    return float(abs(turned - corners * side - side * (1 + 1j)).mean() / side)


if __name__ == "__main__":
    main()

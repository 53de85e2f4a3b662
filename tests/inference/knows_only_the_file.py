"""Predicts a face by what an exported file says of itself, without anything of agenet.

python knows_only_the_file.py MODEL IMAGE FACE

FACE is JSON: a `box` of YuNet as [left, top, right, bottom], and the five `landmarks`.
"""

import json
import math
import sys

import cv2
import numpy as np
import onnxruntime


def main(model: str, path: str, face: str) -> None:
    session = onnxruntime.InferenceSession(model)
    described = session.get_modelmeta()
    assert "Do not normalise" in described.description
    about = {name: json.loads(text) for name, text in described.custom_metadata_map.items()}
    square = crop(cv2.imread(path), json.loads(face), about["crop"], about["input"]["shape"][1])
    assert about["input"]["colours"] == "RGB" and about["input"]["type"] == "uint8"
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {about["input"]["name"]: square[None, :, :, ::-1]})
    found = {name: np.exp(values[0]) for name, values in zip(names, outputs, strict=True)}
    group = about["labels"]["age"][found["age"].argmax()]
    low, high = map(int, group.split("-"))
    age = about["labels"]["years"][found["years"].cumsum().searchsorted(0.5)]
    gender = about["labels"]["gender"][found["gender"].argmax()]
    answer = {"age": float(np.clip(age, low, high)), "age_group": group, "gender": gender}
    print(json.dumps(answer | {"probability": float(found["gender"].max())}))


def crop(image: np.ndarray, face: dict, recipe: dict, size: int) -> np.ndarray:
    """The upright square, as the file describes it."""
    left, top, right, bottom = face["box"]
    side = recipe["side"] * math.sqrt((right - left) * (bottom - top))
    here = np.array(face["landmarks"])  # in the order of the recipe
    there = np.array(list(recipe["landmarks"].values())) * size
    # The angle of the best similarity transform; the scale is that of the box.
    a, b = here - here.mean(0), there - there.mean(0)
    angle = math.atan2((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), (a * b).sum())
    turn = (
        size
        / side
        * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    )
    shift = there.mean(0) - turn @ here.mean(0)
    # At several times the size, then averaged over areas.
    fine = max(math.ceil(side / size), 1)
    matrix = fine * np.column_stack([turn, shift])
    square = cv2.warpAffine(image, matrix, (fine * size, fine * size))
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main(*sys.argv[1:])

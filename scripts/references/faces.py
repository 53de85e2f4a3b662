"""Loads the prepared faces of Adience as arrays, for training in other frameworks."""

import argparse
import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from agenet.data.decoding import load_faces
from agenet.data.records import open_records
from agenet.data.splits import make_splits
from agenet.errors import ArgumentParser, UserError

CLASSES = {"age": 8, "gender": 2}
# RGB, 0 to 255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Faces(NamedTuple):
    """Images uint8 [N, S, S, 3], RGB, and labels int64 [N] per task, -1 if unknown."""

    images: np.ndarray
    labels: dict[str, np.ndarray]


@contextlib.contextmanager
def getting(weights: str) -> Iterator[None]:
    """Turns a framework's error for missing or unfitting weights into one line."""
    try:
        yield
    except Exception as error:  # Any: each raises in its own way.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--weights={weights} cannot be loaded ({reason}): give a file of weights, or none"
        ) from error


def parser(description: str, size: int, batch_size: int) -> argparse.ArgumentParser:
    """Creates a parser with the options that these programs share."""
    made = ArgumentParser(description=description)
    made.add_argument("--data_dir", default="", help="where adience/faces is prepared")
    made.add_argument("--test_fold", type=int, default=0)
    made.add_argument("--size", type=int, default=size, help="pixels of the network's input")
    made.add_argument("--batch_size", type=int, default=batch_size)
    made.add_argument("--epochs", type=int, default=5)
    made.add_argument(
        "--faces", type=int, default=0, help="number of faces for training and test, 0: all"
    )
    made.add_argument("--seed", type=int, default=0)
    return made


def read_faces(args: argparse.Namespace, tasks: tuple[str, ...]) -> tuple[Faces, Faces]:
    """Loads training set and official test fold, an eighth larger than the network's input."""
    records = open_records("adience/faces", args.data_dir)
    splits = make_splits(
        records,
        tasks=tasks,
        protocol="subject",
        test_fold=args.test_fold,
        validation_fraction=0.1,
        seed=args.seed,
    )
    rng = np.random.default_rng(args.seed)
    sets = []
    for rows in (splits.train, splits.test):
        rows = np.sort(rng.permutation(rows)[: args.faces or len(rows)])
        images = load_faces(records, rows, round(args.size * 8 / 7))
        labels = {task: records.labels[task][rows].astype(np.int64) for task in tasks}
        sets.append(Faces(images, labels))
    return sets[0], sets[1]

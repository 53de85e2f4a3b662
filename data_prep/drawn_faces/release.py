"""Writes a release of drawn faces in the layout of Adience: an archive and five fold lists.

The lists have the columns and irregularities of Adience: missing labels, ages outside the eight
groups, gender "u" for babies, duplicate rows, albums with several persons. So the code that reads
Adience is tested on them.
"""

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator

from agenet.files import unfinished_file, write_file
from data_prep.adience.release import COLUMNS, FOLDS, PREFIXES
from data_prep.drawn_faces.draw import draw_face
from data_prep.drawn_faces.person import Person, View, create_person, create_view

ARCHIVE = "faces.tar.gz"
COMMENT = b"drawn by agenet: not a photograph, nobody is shown"

_SIZE = 128
# The shares of Adience, with rare groups raised so that a small set suffices for all eight.
_SHARES = (0.13, 0.12, 0.13, 0.11, 0.20, 0.12, 0.095, 0.095)
_AGES = (
    "(0, 2)",
    "(4, 6)",
    "(8, 12)",
    "(15, 20)",
    "(25, 32)",
    "(38, 43)",
    "(48, 53)",
    "(60, 100)",
)
_STRAY_AGES = (
    ("2", "3"),
    (),
    ("13",),
    ("22",),
    ("35", "34", "23", "29", "(27, 32)", "(25, 23)"),
    ("36", "45", "42", "(38, 42)"),
    ("55", "46"),
    ("57", "58"),
)


@dataclass(frozen=True)
class _Drawing:
    """One row of a fold list, and the person and view to draw."""

    user_id: str
    original_image: str
    face_id: int
    age: str
    gender: str
    score: int
    person: Person
    view: View

    @property
    def member(self) -> str:
        name = f"{PREFIXES['faces']}.{self.face_id}.{self.original_image}"
        return f"faces/{self.user_id}/{name}"

    @property
    def row(self) -> str:
        # The drawing is its own original, so the box of the face is the whole image.
        box = (0, 0, _SIZE, _SIZE, 0, round(self.view.yaw))
        names = (self.user_id, self.original_image, self.face_id, self.age, self.gender)
        return "\t".join(map(str, (*names, *box, self.score)))


def write_release(manual_dir: Path, count: int = 1600, seed: int = 0) -> None:
    """Writes `faces.tar.gz` and `fold_0_data.txt` to `fold_4_data.txt` into `manual_dir`.

    The same arguments give the same files. Interrupting it leaves no partly written file; the fold
    lists appear last.

    Args:
        manual_dir: created if it is missing; files of an earlier release are replaced.
        count: number of distinct faces, at least 200, so that every fold has every age group.
        seed: of the random number generator.
    """
    if count < 200:
        raise ValueError(f"count is {count}: a release needs at least 200 faces")
    rng = np.random.default_rng(seed)
    manual_dir.mkdir(parents=True, exist_ok=True)
    folds = list(_create_folds(count, rng))
    with unfinished_file(manual_dir / ARCHIVE) as unfinished:
        _write_archive(unfinished, [p for fold in folds for p in fold])
    for number, drawings in enumerate(folds):
        rows = [drawing.row for drawing in drawings]
        for index in rng.integers(len(rows), size=max(1, len(rows) // 160)):
            rows.insert(int(rng.integers(len(rows))), rows[index])  # Adience has 0.6 % twice
        text = "\n".join(["\t".join(COLUMNS), *rows, ""])
        write_file(manual_dir / f"fold_{number}_data.txt", text.encode())


def _create_folds(count: int, rng: Generator) -> Iterator[list[_Drawing]]:
    face_id = image = user = 0
    for fold in range(FOLDS):
        persons = _share_out(count * (fold + 1) // FOLDS - count * fold // FOLDS, rng)
        genders = rng.permutation(np.arange(len(persons)) % 2)
        drawings: list[_Drawing] = []
        known_groups: set[int] = set()  # every fold has every group
        originals: list[str] = []  # of the current album, with room for another person
        album_left = 0  # number of persons to add to the current album
        for (group, repeats), gender in zip(persons, genders, strict=True):
            if not album_left:
                album_left, user, originals = int(rng.integers(1, 9)), user + 1, []
            album_left -= 1
            face_id += 1
            person = create_person(group, int(gender), rng)
            age, sex = _labels(person, rng, plain=group not in known_groups)
            known_groups.add(group)
            names = []
            for _ in range(repeats):
                if originals and rng.random() < 0.15:
                    names.append(originals.pop())
                else:
                    image += 1
                    names.append(f"drawn_{image:06d}.jpg")
                album, score = f"drawn-{user:04d}@N00", int(rng.integers(10, 160))
                view = create_view(rng)
                drawings.append(_Drawing(album, names[-1], face_id, age, sex, score, person, view))
            originals.extend(names)
        yield drawings


def _share_out(total: int, rng: Generator) -> list[tuple[int, int]]:
    """Returns (age group, number of images) of each person, shuffled, for `total` images."""
    edges = np.round(np.cumsum((0, *_SHARES)) / sum(_SHARES) * total).astype(int)
    persons = []
    for group, left in enumerate(np.diff(edges).tolist()):
        while left:
            repeats = min(left, int(rng.integers(2, 6)))
            persons.append((group, repeats))
            left -= repeats
    rng.shuffle(persons)
    return persons


def _labels(person: Person, rng: Generator, plain: bool) -> tuple[str, str]:
    """Returns age and gender as Adience writes them; irregular ages only if not `plain`."""
    group, gender = person.age_group, "fm"[person.gender]
    if not plain and rng.random() < 0.02:
        return "None", ""
    age = _AGES[group]
    if not plain and _STRAY_AGES[group] and rng.random() < 0.05:
        age = str(rng.choice(_STRAY_AGES[group]))
    if group == 0 and rng.random() < 0.4:
        gender = "u"
    return age, gender


def _write_archive(path: Path, drawings: list[_Drawing]) -> None:
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        path.open("wb") as file,
        # tarfile would write the time and the file's name into the gzip header.
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        try:
            for drawing, data in zip(drawings, pool.map(_encode, drawings), strict=True):
                member = tarfile.TarInfo(drawing.member)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        finally:
            pool.shutdown(cancel_futures=True)  # stop after Ctrl-C or if the disk is full


def _encode(drawing: _Drawing) -> bytes:
    """Draws the face as JPEG, with a comment that says that it is a drawing."""
    image = draw_face(drawing.person, drawing.view, _SIZE)
    quality = 60 + drawing.view.seed % 36
    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    jpeg = data.tobytes()
    segment = b"\xff\xfe" + (len(COMMENT) + 2).to_bytes(2, "big") + COMMENT
    return jpeg[:2] + segment + jpeg[2:]

"""The report of a data set of one's own: counts, sizes, duplicates, what is left out, faces."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from agenet.data.prepare_images import PreparedImages
from agenet.data.records import Records, open_records
from agenet.data.stored import read_images
from agenet.errors import printable
from agenet.evaluation.figure_style import COLORS, add_axes, style_axes, title_axes, to_image
from agenet.evaluation.page import (
    Facts,
    Grid,
    Heading,
    Image,
    Listing,
    Node,
    Table,
    Text,
    to_html,
)
from agenet.files import write_file
from agenet.labels import AGE_GROUPS, GENDERS

_FACES_PER_GROUP = 8
_FACE_SIDE = 96  # pixels
_PAIRS_SHOWN = 8
_PATHS_SHOWN = 20
_SIDES = (0, 48, 64, 96, 128, 192, 256, 384)  # lower ends of the sizes in pixels


def write_data_report(prepared: PreparedImages) -> Path:
    """Writes report.html into the folder of a prepared data set; returns its path."""
    records = open_records(prepared.name, str(prepared.folder.parents[2]))
    path = prepared.folder / "report.html"
    write_file(path, to_html(prepared.name, compose(prepared, records)).encode())
    return path


def compose(prepared: PreparedImages, records: Records) -> list[Node]:
    """The document of a data set, whose images are those of `records`."""
    rows = np.concatenate(list(prepared.splits.values()))
    exact = (records.age_low >= 0) & (records.age_low == records.age_high)
    facts = [
        ("Images", f"{len(rows):,}"),
        ("Labels", f"{prepared.table.source}: {prepared.table.columns}"),
        ("Known age", f"{(records.labels['age'] >= 0).sum():,}, to the year {exact.sum():,}"),
        ("Known gender", f"{(records.labels['gender'] >= 0).sum():,}"),
        ("Subjects or clusters", f"{len(np.unique(records.subject_id)):,}"),
        ("Left out", f"{sum(map(len, prepared.left_out.values())):,}"),
    ]
    nodes: list[Node] = [Heading(1, f"Data set {prepared.name}")]
    if prepared.notice:
        nodes.append(Text(prepared.notice, "warning"))
    nodes += [Facts(facts), Listing(prepared.lines)]
    nodes += [Heading(2, "Ages and genders", "counts"), _counts(records)]
    if exact.any():
        nodes.append(_ages(records, exact))
    nodes += [Heading(2, "Splits", "splits"), *_splits(prepared, records)]
    nodes += [Heading(2, "Sizes", "sizes"), _sizes(prepared.encoded.sizes[rows])]
    nodes += [Heading(2, "Near-duplicates", "duplicates"), *_duplicates(prepared, records, rows)]
    nodes += [Heading(2, "Left out", "left-out"), *_left_out(prepared)]
    text = "A random choice. Publish them only where the terms of the images allow it."
    return [*nodes, Heading(2, "Faces", "faces"), Text(text, "note"), *_faces(records)]


def _counts(records: Records) -> Table:
    age, gender = records.labels["age"], records.labels["gender"]
    body = []
    for group, name in [*enumerate(AGE_GROUPS), (-1, "unknown")]:
        of_group = [(age == group) & (gender == each) for each in (*range(len(GENDERS)), -1)]
        counts = [int(chosen.sum()) for chosen in of_group]
        body.append([name, *(f"{count:,}" for count in (*counts, sum(counts)))])
    totals = [int((gender == each).sum()) for each in (*range(len(GENDERS)), -1)]
    body.append(["all", *(f"{count:,}" for count in (*totals, len(age)))])
    return Table(["Age group", *GENDERS, "unknown", "all"], body)


def _ages(records: Records, exact: np.ndarray) -> Image:
    figure = Figure(figsize=(7, 2.6), facecolor="white")
    axes = add_axes(figure, 0.7, 0.45, 6.0, 1.8)
    ages = records.age_low[exact]
    bins = np.arange(0, 106, 5)
    gender = records.labels["gender"][exact]
    parts = [(name, ages[gender == i]) for i, name in enumerate(GENDERS)]
    parts = [*parts, ("unknown", ages[gender < 0])]
    shown = [(name, values) for name, values in parts if len(values)]
    axes.hist(
        [values for _, values in shown],
        bins=bins.tolist(),
        stacked=True,
        color=list(COLORS[: len(shown)]),
        label=[name for name, _ in shown],
    )
    style_axes(axes)
    title_axes(axes, "Faces by age in years")
    axes.legend(frameon=False, fontsize=9)
    return to_image(figure, "ages", "Histogram of the ages that are known to the year, by gender.")


def _splits(prepared: PreparedImages, records: Records) -> Iterator[Node]:
    start = 0
    body = []
    for name, rows in prepared.splits.items():
        part = slice(start, start + len(rows))
        start += len(rows)
        age, gender = (records.labels[task][part] for task in ("age", "gender"))
        ages = np.bincount(age[age >= 0], minlength=len(AGE_GROUPS))
        genders = np.bincount(gender[gender >= 0], minlength=len(GENDERS))
        subjects = len(np.unique(records.subject_id[part]))
        counts = (len(rows), subjects, *genders.tolist(), *ages.tolist())
        body.append([name, *(f"{count:,}" for count in counts)])
    yield Table(["Split", "faces", "subjects", *GENDERS, *AGE_GROUPS], body)


def _sizes(sizes: np.ndarray) -> Table:
    shorter = sizes.min(axis=1)
    body = []
    for low, end in zip(_SIDES, (*_SIDES[1:], None), strict=True):
        count = int(((shorter >= low) & (shorter < (end or np.inf))).sum())
        if count:
            body.append([f"{low} to {end - 1}" if end else f"{low} and more", f"{count:,}"])
    return Table(["Shorter side as stored, pixels", "faces"], body)


def _duplicates(prepared: PreparedImages, records: Records, rows: np.ndarray) -> Iterator[Node]:
    near, table = prepared.near, prepared.table
    if not len(near):
        yield Text("No two images look like the same photograph.")
        return
    subject = table.subject
    other = 0
    if subject is not None:
        one, two = subject[near[:, 0]], subject[near[:, 1]]
        other = int(((one != two) & (one != "") & (two != "")).sum())
    ages = table.age_low[near]
    known = (ages >= 0).all(axis=1)
    difference = np.abs(ages[known, 0] - ages[known, 1])
    text = f"{len(near):,} pairs of images look like the same photograph"
    text += f", {other:,} of them of different subjects" if other else ""
    if known.any():
        text += f"; their ages differ by {difference.mean():.1f} years in the mean"
    yield Text(f"{text}. The first pairs:")
    place = {row: i for i, row in enumerate(rows.tolist())}
    pairs = near[:_PAIRS_SHOWN].ravel().tolist()
    yield _grid(records, [place[row] for row in pairs], [str(table.path[row]) for row in pairs])


def _left_out(prepared: PreparedImages) -> Iterator[Node]:
    if not prepared.left_out:
        yield Text("Nothing.")
        return
    body = []
    for reason, paths in prepared.left_out.items():
        shown = ", ".join(printable(path, 200) for path in paths[:_PATHS_SHOWN])
        more = f" and {len(paths) - _PATHS_SHOWN:,} more" if len(paths) > _PATHS_SHOWN else ""
        body.append([reason, f"{len(paths):,}", shown + more])
    yield Table(["Reason", "images", "which"], body, frozenset({0, 2}))


def _faces(records: Records) -> Iterator[Node]:
    rng = np.random.default_rng(0)
    age = records.labels["age"]
    for group, name in [*enumerate(AGE_GROUPS), (-1, "unknown age")]:
        rows = np.flatnonzero(age == group)
        if len(rows):
            chosen = np.sort(rng.permutation(rows)[:_FACES_PER_GROUP]).tolist()
            yield Heading(3, name)
            yield _grid(records, chosen, [_label(records, row) for row in chosen])


def _label(records: Records, row: int) -> str:
    low, high = int(records.age_low[row]), int(records.age_high[row])
    gender = int(records.labels["gender"][row])
    age = "age unknown" if low < 0 else str(low) if low == high else f"{low}-{high}"
    return f"{age}, {GENDERS[gender] if gender >= 0 else 'gender unknown'}"


def _grid(records: Records, rows: Sequence[int], captions: Sequence[str]) -> Grid:
    images = []
    for row, data, caption in zip(rows, read_images(records.images, rows), captions, strict=True):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None  # It was decoded before it was stored.
        scale = _FACE_SIDE / min(image.shape[:2])
        size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        webp = cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, 80])[1].tobytes()
        images.append(Image(f"face{row}.webp", webp, caption, printable(caption)))
    return Grid(images, "faces")

"""Reads pictures on Apache Beam, on as many machines as its runner has.

Every worker opens the archives by itself: they and the prepared set must lie on a file system that
all workers see under the same path.
"""

import json
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_prep.archives import FileLocation, locate_files
from data_prep.images import encode_for_storage
from data_prep.release import Release

Task = tuple[str, dict[str, Any], FileLocation]  # key of the example, its features, its picture

_BROKEN = "broken"
_TASKS_PER_FILE = 10_000


def locate(release: Release) -> tuple[dict[str, FileLocation], list[str]]:
    """Where each picture's bytes lie, and which pictures are missing.

    Raises:
        UserError: an archive is damaged, cut short or hostile.
    """
    missing = {path for rows in release.splits.values() for path in rows}
    places: dict[str, FileLocation] = {}
    for source in release.sources:
        places.update(locate_files(source, frozenset(missing)))
        missing -= places.keys()
    return places, sorted(missing)


def store_pictures(tasks: list[Task], max_side: int | None, folder: Path) -> Any:
    """A Beam transform from nothing to one split's keys and examples.

    Args:
        tasks: the split's pictures.
        max_side: pixels of a stored picture's shorter side; None keeps pictures as released.
        folder: new folder of the split's own, for what is passed to and from the workers.
    """
    beam = tfds.core.lazy_imports.apache_beam
    folder.mkdir(parents=True)
    lists = []
    # In files: the pipeline itself goes to the runner in one message, which has its limits.
    for start in range(0, len(tasks), _TASKS_PER_FILE):
        lists.append(folder / f"tasks-{start}.json")
        some = tasks[start : start + _TASKS_PER_FILE]
        lists[-1].write_text(json.dumps([(key, row, astuple(place)) for key, row, place in some]))

    def read(path: Path) -> Any:
        return json.loads(path.read_text())

    def store(task: Any) -> Iterator[Any]:
        key, features, place = task
        picture = encode_for_storage(FileLocation(*place).read(), max_side)
        if picture is None:
            yield beam.pvalue.TaggedOutput(_BROKEN, key)
        else:
            yield key, {"image": picture, **features}

    def transform(pipeline: Any) -> Any:
        outputs = (
            pipeline
            | "Lists" >> beam.Create(lists)
            | "Tasks" >> beam.FlatMap(read)
            | beam.Reshuffle()
            | "Store" >> beam.FlatMap(store).with_outputs(_BROKEN, main="examples")
        )
        _ = (
            outputs[_BROKEN]
            | beam.combiners.ToList()
            | "Broken" >> beam.Map(lambda keys: (folder / _BROKEN).write_text(json.dumps(keys)))
        )
        return outputs["examples"]

    return beam.ptransform_fn(transform)()


def broken_pictures(folder: Path) -> list[str]:
    """The keys of those pictures of `store_pictures` that did not decode, once Beam is through."""
    return json.loads((folder / _BROKEN).read_text())

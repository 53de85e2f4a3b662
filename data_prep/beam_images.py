"""Reads and stores images with Apache Beam, on one machine or several.

Every worker opens the archives itself: the archives and the prepared set must be on a file system
that all workers mount at the same path.
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

Task = tuple[str, dict[str, Any], FileLocation]  # example key, features, image file

_BROKEN = "broken"
_TASKS_PER_FILE = 10_000


def locate_images(release: Release) -> tuple[dict[str, FileLocation], list[str]]:
    """Returns the location of each image by path, and the paths of missing images.

    Raises:
        UserError: an archive is damaged, truncated or malicious.
    """
    missing = {path for rows in release.splits.values() for path in rows}
    locations: dict[str, FileLocation] = {}
    for source in release.sources:
        locations.update(locate_files(source, frozenset(missing)))
        missing -= locations.keys()
    return locations, sorted(missing)


def store_images(tasks: list[Task], max_side: int | None, folder: Path) -> Any:
    """Creates a Beam transform that yields keys and examples of one split.

    Args:
        tasks: the images of the split.
        max_side: maximum length of the shorter side in pixels; None stores files as released.
        folder: a new folder for the files that are exchanged with the workers.
    """
    beam = tfds.core.lazy_imports.apache_beam
    folder.mkdir(parents=True)
    lists = []
    # In files, because the runner receives the pipeline in one message of limited size.
    for start in range(0, len(tasks), _TASKS_PER_FILE):
        lists.append(folder / f"tasks-{start}.json")
        some = tasks[start : start + _TASKS_PER_FILE]
        lists[-1].write_text(
            json.dumps([(key, row, astuple(location)) for key, row, location in some])
        )

    def read(path: Path) -> Any:
        return json.loads(path.read_text())

    def store(task: Any) -> Iterator[Any]:
        key, features, location = task
        image = encode_for_storage(FileLocation(*location).read(), max_side)
        if image is None:
            yield beam.pvalue.TaggedOutput(_BROKEN, key)
        else:
            yield key, {"image": image, **features}

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


def broken_images(folder: Path) -> list[str]:
    """Returns the keys of images that `store_images` could not decode, after the pipeline ran."""
    return json.loads((folder / _BROKEN).read_text())

"""What the builders of all data sets have in common: one pass over pictures, checked and stored."""

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from agenet.errors import UserError
from data_prep import beam_images
from data_prep.archives import read_files
from data_prep.images import encode_for_storage
from data_prep.release import Release, check_left_out, shortened

NAMES_KEPT = 100  # in the metadata, of pictures that are left out
_BAR: Any = {"leave": False, "disable": None}  # None: on a terminal only

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class FaceConfig(tfds.core.BuilderConfig):
    """How large the pictures are stored.

    Attributes:
        max_side: pixels of a picture's shorter side; None keeps pictures as released.
    """

    max_side: int | None = None


# What every prepared data set has, as agenet.data.records reads it.
COMMON_FEATURES: Mapping[str, Any] = {
    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
    # One number for one person.
    "subject_id": tfds.features.Scalar(np.int64),
    # Indices into agenet.labels.AGE_GROUPS and GENDERS, -1 where unknown; a ClassLabel would not
    # take the -1.
    "age_official": tfds.features.Scalar(np.int64),
    "age_extended": tfds.features.Scalar(np.int64),
    "gender": tfds.features.Scalar(np.int64),
    # Whole years between which the age lies, both included; -1 where unknown.
    "age_low": tfds.features.Scalar(np.int64),
    "age_high": tfds.features.Scalar(np.int64),
}


class FaceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds a data set of faces from one pass over the pictures of a release.

    A data set says where its release lies and what its rows mean: `_check_release`,
    `_read_release`, `_features`.
    """

    # What readers of any result must know of the data; `agenet` shows it wherever they look.
    NOTICE = ""
    HOMEPAGE = ""
    LICENSE = ""
    FEATURES: Mapping[str, Any] = {}  # those besides COMMON_FEATURES
    GENERATES_RELEASE = False  # whether ensure_release() needs nothing of the user's
    SUPPORTS_BEAM = False  # whether it runs on Apache Beam, too

    beam = False  # set it before preparing, to do so on the runner of TFDS's DownloadConfig
    _scaled_out: tuple[Release, list[str]] | None = None  # a release, and what is missing

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        # ArrayRecord files can be read in any order, and without TensorFlow.
        super().__init__(file_format=file_format, **kwargs)

    def ensure_release(self, manual_dir: Path) -> None:
        """Sees to it, before anything is written, that `manual_dir` holds the release.

        Raises:
            UserError: if it does not, naming all that is missing.
        """
        self._check_release(manual_dir)

    def _check_release(self, manual_dir: Path) -> None:
        raise NotImplementedError

    def _read_release(self, manual_dir: Path) -> Release:
        raise NotImplementedError

    def _features(self, row: Any) -> dict[str, Any]:
        """All features of a row but its picture."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({**COMMON_FEATURES, **self.FEATURES}),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            metadata=tfds.core.MetadataDict(notice=self.NOTICE),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = Path(dl_manager.manual_dir)
        self._check_release(folder)
        release = self._read_release(folder)
        if self.beam:
            return self._split_transforms(release)
        stored, missing, broken = self._store_pictures(release)
        self._describe(release, missing, broken)
        self._kept({split: [row for _, row, _ in rows] for split, rows in stored.items()})
        return {
            split: self._generate_examples(self._spool(split), rows)
            for split, rows in stored.items()
        }

    def _split_transforms(self, release: Release) -> dict[str, Any]:
        """What `_split_generators` returns where Beam reads the pictures."""
        places, missing = beam_images.locate(release)
        check_left_out(release, missing, [])
        self._scaled_out = release, missing
        return {
            split: beam_images.store_pictures(
                [
                    (path, self._features(row), places[path])
                    for path, row in rows.items()
                    if path in places
                ],
                self.builder_config.max_side,
                self._exchange / split,
            )
            for split, rows in release.splits.items()
        }

    def _process_pipeline_result(self, pipeline_result: Any) -> None:
        """TFDS calls it once Beam is through, while failing still leaves nothing behind."""
        assert self._scaled_out
        release, missing = self._scaled_out
        broken = [
            path
            for split in release.splits
            for path in beam_images.broken_pictures(self._exchange / split)
        ]
        shutil.rmtree(self._exchange)
        check_left_out(release, missing, broken)
        lost = {*missing, *broken}
        self._describe(release, missing, sorted(broken))
        self._kept(
            {
                split: [row for path, row in rows.items() if path not in lost]
                for split, rows in release.splits.items()
            }
        )

    @property
    def _exchange(self) -> Path:
        # In the folder that TFDS removes when preparing ends in an error.
        return Path(self.data_path) / "beam.tmp"

    def _kept(self, splits: dict[str, list[Any]]) -> None:
        """Called once it is known which rows of each split have a usable picture."""

    def _describe(self, release: Release, missing: list[str], broken: list[str]) -> None:
        """Records where the prepared set comes from and what was left out of it."""
        summary = list(release.summary)
        for names, what in ((missing, "missing"), (broken, "broken")):
            if names:
                summary.append(
                    f"left out: {len(names):,} pictures that are {what}: {shortened(names)}"
                )
        self.info.metadata.clear()
        self.info.metadata.update(
            {
                "notice": self.NOTICE,
                "sources": [source.name for source in release.sources],
                "pictures_missing": {"count": len(missing), "first": missing[:NAMES_KEPT]},
                "pictures_broken": {"count": len(broken), "first": broken[:NAMES_KEPT]},
                **release.metadata,
                "summary": summary,
            }
        )

    def _spool(self, split: str) -> Path:
        # In the folder that TFDS removes when preparing ends in an error.
        return Path(self.data_path) / f"{split}.tmp"

    def _store_pictures(
        self, release: Release
    ) -> tuple[dict[str, list[tuple[str, Any, int]]], list[str], list[str]]:
        """Writes each split's pictures one after the other into the split's spool.

        TFDS asks for one split after the other, while an archive is best read once and has the
        splits mixed: hence the files in between.

        Returns:
            Path, row and picture's length in bytes of each split's faces, in the order of the
            spool; the paths of pictures that are missing; and of those that do not decode.
        """
        max_side = self.builder_config.max_side
        split_of = {path: split for split, rows in release.splits.items() for path in rows}
        stored: dict[str, list[tuple[str, Any, int]]] = {split: [] for split in release.splits}
        missing = set(split_of)
        broken = []

        def store(picture: tuple[str, bytes]) -> tuple[str, bytes | None]:
            return picture[0], encode_for_storage(picture[1], max_side)

        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
            spools = {s: stack.enter_context(self._spool(s).open("wb")) for s in release.splits}
            bar = stack.enter_context(
                tqdm(total=len(split_of), desc="Reading", unit=" pictures", **_BAR)
            )
            for source in release.sources:
                found = read_files(source, frozenset(missing))
                for path, jpeg in _map_ahead(pool, store, found, ahead=4 * (os.cpu_count() or 1)):
                    bar.update()
                    missing.remove(path)
                    if jpeg is None:
                        broken.append(path)
                    else:
                        split = split_of[path]
                        spools[split].write(jpeg)
                        stored[split].append((path, release.splits[split][path], len(jpeg)))
        check_left_out(release, missing, broken)
        for split, rows in list(stored.items()):
            if not rows:
                if not release.partial:
                    raise UserError(f"{release.where}: none of the pictures of {split} can be used")
                self._spool(split).unlink()
                del stored[split]
        return stored, sorted(missing), sorted(broken)

    def _generate_examples(
        self, spool: Path, rows: list[tuple[str, Any, int]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        with spool.open("rb") as file:
            for path, row, length in tqdm(rows, desc="Writing", unit=" pictures", **_BAR):
                yield path, {"image": file.read(length), **self._features(row)}
        spool.unlink()


def _map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """`pool.map` in order, with at most `ahead` items in memory."""
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()

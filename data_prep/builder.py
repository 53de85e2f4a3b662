"""The base class of all TFDS builders: validates and stores images in one pass."""

import dataclasses
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from agenet.errors import UserError
from data_prep import beam_images
from data_prep.archives import read_files
from data_prep.exclusive import UNFINISHED, exclusively
from data_prep.images import encode_for_storage
from data_prep.one_line import show_errors_as_one_line
from data_prep.release import Release, check_complete, check_left_out, shortened

NAMES_KEPT = 100  # number of left-out images that are named in the metadata
_BAR: Any = {"leave": False, "disable": None}  # None: on a terminal only

show_errors_as_one_line()

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class FaceConfig(tfds.core.BuilderConfig):
    """Configuration of a data set of faces.

    Attributes:
        max_side: maximum length of the shorter side in pixels; None stores files as released.
    """

    max_side: int | None = None


# Features of every prepared data set, read by agenet.data.records.
COMMON_FEATURES: Mapping[str, Any] = {
    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
    # The same number in all images of a person.
    "subject_id": tfds.features.Scalar(np.int64),
    # Indices into agenet.labels.AGE_GROUPS and GENDERS, -1 if unknown, which ClassLabel does not
    # support.
    "age_official": tfds.features.Scalar(np.int64),
    "age_extended": tfds.features.Scalar(np.int64),
    "gender": tfds.features.Scalar(np.int64),
    # First and last year of the age range, inclusive; -1 if unknown.
    "age_low": tfds.features.Scalar(np.int64),
    "age_high": tfds.features.Scalar(np.int64),
}


class FaceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds a data set of faces in one pass over the images of a release.

    Subclasses implement `_missing_files` and `_read_release`, and `_features` if their rows have no
    method `features`.
    """

    # A warning about the data that agenet shows beside every result.
    NOTICE = ""
    HOMEPAGE = ""
    LICENSE = ""
    FEATURES: Mapping[str, Any] = {}  # in addition to COMMON_FEATURES
    GENERATES_RELEASE = False  # whether ensure_release() creates a release that is missing
    SUPPORTS_BEAM = False  # whether it can run on Apache Beam

    beam = False  # set before preparing, to run on the Beam runner of TFDS's DownloadConfig
    _beam_release: tuple[Release, list[str]] | None = None  # and the paths of missing images

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        # ArrayRecord files support random access, without TensorFlow.
        super().__init__(file_format=file_format, **kwargs)

    def download_and_prepare(
        self,
        *,
        download_dir: Any = None,
        download_config: tfds.download.DownloadConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepares the data set unless it is prepared, as TFDS's method does.

        Without a folder in `download_config.manual_dir` the release is expected in
        DATA_DIR/downloads/manual; one that can be generated is, into a temporary folder.

        Raises:
            UserError: a mistake that the user can correct, such as missing files.
        """
        config = download_config or tfds.download.DownloadConfig()
        prepare = partial(super().download_and_prepare, **kwargs)
        folder = Path(self.data_path).parent
        with (
            exclusively(folder),
            # Where it is found and removed if this process is killed.
            tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as scratch,
        ):
            if not self.data_path.exists() or config.download_mode.overwrite_dataset:
                manual_dir = config.manual_dir
                if not manual_dir and self.GENERATES_RELEASE:
                    manual_dir = scratch
                elif not manual_dir:
                    downloads = download_dir or Path(self.data_dir_root) / "downloads"
                    manual_dir = Path(downloads) / "manual"
                self.ensure_release(Path(manual_dir))
                config = dataclasses.replace(config, manual_dir=manual_dir)
            # Nothing is downloaded.
            prepare(download_dir=download_dir or scratch, download_config=config)

    def ensure_release(self, manual_dir: Path) -> None:
        """Checks that `manual_dir` contains the release, before anything is written.

        Raises:
            UserError: files are missing; names all of them.
        """
        self._check_release(manual_dir)

    def _check_release(self, manual_dir: Path) -> None:
        check_complete(manual_dir, self._missing_files, self.MANUAL_DOWNLOAD_INSTRUCTIONS)

    def _missing_files(self, folder: Path) -> list[str]:
        """Returns the names of the files of the release that `folder` lacks."""
        raise NotImplementedError

    def _read_release(self, manual_dir: Path) -> Release:
        raise NotImplementedError

    def _features(self, row: Any) -> dict[str, Any]:
        """Returns all features of a row except its image."""
        return row.features()

    def _info(self) -> tfds.core.DatasetInfo:
        info = self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({**COMMON_FEATURES, **self.FEATURES}),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            metadata=tfds.core.MetadataDict(notice=self.NOTICE),
        )
        # It looks for sets that TFDS has published, and leaves an empty temporary folder each time.
        info.initialize_from_bucket = lambda: None
        return info

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        release = self._read_release(Path(dl_manager.manual_dir))
        if self.beam:
            return self._beam_transforms(release)
        stored, missing, broken = self._store_images(release)
        self._describe(release, missing, broken)
        self._kept({split: [row for _, row, _ in rows] for split, rows in stored.items()})
        return {
            split: self._generate_examples(self._spool(split), rows)
            for split, rows in stored.items()
        }

    def _beam_transforms(self, release: Release) -> dict[str, Any]:
        """Returns the splits for `_split_generators` when Beam reads the images."""
        locations, missing = beam_images.locate_images(release)
        check_left_out(release, missing, [])
        self._beam_release = release, missing
        return {
            split: beam_images.store_images(
                [
                    (path, self._features(row), locations[path])
                    for path, row in rows.items()
                    if path in locations
                ],
                self.builder_config.max_side,
                self._beam_folder / split,
            )
            for split, rows in release.splits.items()
            if locations.keys() & rows.keys() or not release.partial
        }

    def _process_pipeline_result(self, pipeline_result: Any) -> None:
        """Called by TFDS after the Beam pipeline, when errors still leave no files behind."""
        assert self._beam_release
        release, missing = self._beam_release
        broken = [
            path
            for split in release.splits
            if (self._beam_folder / split).exists()
            for path in beam_images.broken_images(self._beam_folder / split)
        ]
        shutil.rmtree(self._beam_folder)
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
    def _beam_folder(self) -> Path:
        # In the folder that TFDS deletes if preparing fails.
        return Path(self.data_path) / "beam.tmp"

    def _kept(self, splits: dict[str, list[Any]]) -> None:
        """Called with the rows of each split whose images are usable."""

    def _describe(self, release: Release, missing: list[str], broken: list[str]) -> None:
        """Records the sources of the prepared set and the images that were left out."""
        summary = list(release.summary)
        for names, what in ((missing, "missing"), (broken, "broken")):
            if names:
                summary.append(
                    f"left out: {len(names):,} images that are {what}: {shortened(names)}"
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
        # In the folder that TFDS deletes if preparing fails.
        return Path(self.data_path) / f"{split}.tmp"

    def _store_images(
        self, release: Release
    ) -> tuple[dict[str, list[tuple[str, Any, int]]], list[str], list[str]]:
        """Writes the images of each split to the split's spool file.

        TFDS writes one split after the other, while the splits are mixed in an archive that should
        be read once only; the spool files separate them.

        Returns:
            For each split path, row and image length in bytes, in the order of the spool file; the
            paths of missing images; the paths of images that cannot be decoded.
        """
        max_side = self.builder_config.max_side
        split_of = {path: split for split, rows in release.splits.items() for path in rows}
        stored: dict[str, list[tuple[str, Any, int]]] = {split: [] for split in release.splits}
        missing = set(split_of)
        broken = []

        def encode(file: tuple[str, bytes]) -> tuple[str, bytes | None]:
            return file[0], encode_for_storage(file[1], max_side)

        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
            spools = {s: stack.enter_context(self._spool(s).open("wb")) for s in release.splits}
            bar = stack.enter_context(
                tqdm(total=len(split_of), desc="Reading", unit=" images", **_BAR)
            )
            for source in release.sources:
                found = read_files(source, frozenset(missing))
                for path, jpeg in _map_ahead(pool, encode, found, ahead=4 * (os.cpu_count() or 1)):
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
                    raise UserError(f"{release.where}: none of the images of {split} can be used")
                self._spool(split).unlink()
                del stored[split]
        return stored, sorted(missing), sorted(broken)

    def _generate_examples(
        self, spool: Path, rows: list[tuple[str, Any, int]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        with spool.open("rb") as file:
            for path, row, length in tqdm(rows, desc="Writing", unit=" images", **_BAR):
                yield path, {"image": file.read(length), **self._features(row)}
        spool.unlink()


def _map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Like `pool.map`, with at most `ahead` items in memory."""
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()

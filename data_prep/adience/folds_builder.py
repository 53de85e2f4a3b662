"""What the builders of Adience, and of data sets laid out as Adience, have in common."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from agenet.errors import UserError
from agenet.labels import adience_age_group, adience_gender

from . import pictures, release

MAX_LEFT_OUT = 0.01  # of the faces; more than that is no release but a part of one
_NAMES_SHOWN = 10
_BAR: Any = {"leave": False, "disable": None}  # None: on a terminal only

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class FoldsConfig(tfds.core.BuilderConfig):
    """Which pictures, and how large.

    Attributes:
        kind: archive and folder of the release, "faces" or "aligned".
        max_side: pixels of a picture's shorter side; None keeps pictures as released.
    """

    kind: str = "faces"
    max_side: int | None = None


class FoldsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Five splits, `fold_0` to `fold_4`, from one pass over the pictures of a release."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    # What readers of any result must know of the data; `agenet` shows it wherever they look.
    NOTICE = ""
    SOURCE = ""  # where a release is to be had, for messages
    HOMEPAGE = ""
    LICENSE = ""
    MAKES_RELEASE = False  # whether ensure_release() needs nothing of the user's

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
        missing = release.missing_files(manual_dir, self.builder_config.kind)
        if missing:
            raise UserError(f"{manual_dir} lacks {', '.join(missing)}. {self.SOURCE}")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "original_image": tfds.features.Text(),
                    "user_id": tfds.features.Text(),
                    # The fold lists' face_id: one number for one person.
                    "subject_id": tfds.features.Scalar(np.int64),
                    "age": tfds.features.Text(),
                    # Indices into agenet.labels.AGE_GROUPS and GENDERS, -1 where unknown; a
                    # ClassLabel would not take the -1.
                    "age_official": tfds.features.Scalar(np.int64),
                    "age_extended": tfds.features.Scalar(np.int64),
                    "gender": tfds.features.Scalar(np.int64),
                    "yaw": tfds.features.Scalar(np.float32),
                }
            ),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            metadata=tfds.core.MetadataDict(notice=self.NOTICE),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = Path(dl_manager.manual_dir)
        self._check_release(folder)
        folds, duplicates = release.read_fold_lists(folder)
        splits = {f"fold_{number}": faces for number, faces in enumerate(folds)}
        stored, missing, broken = self._store_pictures(folder, splits)
        self.info.metadata.clear()
        self.info.metadata.update(
            notice=self.NOTICE,
            source=release.picture_source(folder, self.builder_config.kind).name,
            duplicate_rows_dropped=duplicates,
            pictures_missing=missing,
            pictures_broken=broken,
        )
        return {
            split: self._generate_examples(self._spool(split), faces)
            for split, faces in stored.items()
        }

    def _spool(self, split: str) -> Path:
        # In the folder that TFDS removes when preparing ends in an error.
        return Path(self.data_path) / f"{split}.tmp"

    def _store_pictures(
        self, folder: Path, splits: dict[str, list[release.Face]]
    ) -> tuple[dict[str, list[tuple[release.Face, int]]], list[str], list[str]]:
        """Writes each split's pictures one after the other into the split's spool.

        TFDS asks for one split after the other, while the archive is best read once and has the
        folds mixed: hence the files in between.

        Returns:
            The faces of each split with their pictures' lengths in bytes, in the order of the
            spool; the paths of pictures that are missing; and of those that do not decode.
        """
        kind, max_side = self.builder_config.kind, self.builder_config.max_side
        wanted = {face.path(kind): (split, face) for split in splits for face in splits[split]}
        stored: dict[str, list[tuple[release.Face, int]]] = {split: [] for split in splits}
        missing = set(wanted)
        broken = []

        def store(picture: tuple[str, bytes]) -> tuple[str, bytes | None]:
            return picture[0], pictures.stored_picture(picture[1], max_side)

        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
            spools = {s: stack.enter_context(self._spool(s).open("wb")) for s in splits}
            found = release.read_pictures(folder, kind, wanted.keys())
            bar = stack.enter_context(
                tqdm(total=len(wanted), desc="Reading", unit=" pictures", **_BAR)
            )
            for path, jpeg in _map_ahead(pool, store, found, ahead=4 * (os.cpu_count() or 1)):
                bar.update()
                missing.remove(path)
                if jpeg is None:
                    broken.append(path)
                else:
                    split, face = wanted[path]
                    spools[split].write(jpeg)
                    stored[split].append((face, len(jpeg)))
        source = release.picture_source(folder, kind)
        _check_left_out(source, sorted(missing), sorted(broken), len(wanted))
        for split, faces in stored.items():
            if not faces:
                raise UserError(f"{source}: none of the pictures of {split} can be used")
        return stored, sorted(missing), sorted(broken)

    def _generate_examples(
        self, spool: Path, faces: list[tuple[release.Face, int]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        with spool.open("rb") as file:
            for face, length in tqdm(faces, desc="Writing", unit=" pictures", **_BAR):
                yield (
                    face.path(self.builder_config.kind),
                    {
                        "image": file.read(length),
                        "original_image": face.original_image,
                        "user_id": face.user_id,
                        "subject_id": face.face_id,
                        "age": face.age,
                        "age_official": adience_age_group(face.age, "official"),
                        "age_extended": adience_age_group(face.age, "extended"),
                        "gender": adience_gender(face.gender),
                        "yaw": face.yaw,
                    },
                )
        spool.unlink()


def _check_left_out(source: Path, missing: list[str], broken: list[str], total: int) -> None:
    """A few pictures may be missing or broken; they are left out and recorded."""
    if len(missing) + len(broken) <= MAX_LEFT_OUT * total:
        return
    parts = []
    for names, what in ((missing, "are missing"), (broken, "do not decode")):
        if names:
            shown = ", ".join(names[:_NAMES_SHOWN])
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            parts.append(f"{len(names)} of {total} pictures {what}: {shown}{more}")
    raise UserError(
        f"{source}: {'; '.join(parts)}. More than {MAX_LEFT_OUT:.0%} is an error: "
        "download it again, and check that fold lists and pictures belong together"
    )


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

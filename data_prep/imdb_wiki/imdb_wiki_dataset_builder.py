"""IMDb-Wiki as a TFDS data set: faces with the age in years, split by person."""

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from agenet.errors import UserError
from agenet.labels import AGE_GROUPS, GENDERS
from data_prep.builder import FaceBuilder, FaceConfig
from data_prep.release import MAX_LEFT_OUT, Release

from . import release
from .noise import NoiseFilter

PAGE = "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/"
SIDE = 256


@dataclass(eq=False)
class ImdbWikiConfig(FaceConfig):
    """Configuration of IMDb-Wiki.

    Attributes:
        databases: "imdb", "wiki" or both.
        noise: the rules that drop rows.
        sample: number of usable rows to sample; None keeps all.
        test_share: fraction of persons in the test set.
        seed: of the sample and of the split.
        partial: whether any part of the release is accepted.
    """

    max_side: int | None = SIDE
    databases: tuple[str, ...] = ("imdb", "wiki")
    noise: NoiseFilter = field(default_factory=NoiseFilter)
    sample: int | None = None
    test_share: float = 0.1
    seed: int = 0
    partial: bool = False


class Builder(FaceBuilder):
    """IMDb-Wiki (Rothe, Timofte & Van Gool, 2018), with the usual noise filter."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        ImdbWikiConfig(
            name="wiki",
            description="The Wikipedia part: 38,138 usable rows.",
            databases=("wiki",),
        ),
        ImdbWikiConfig(
            name="imdb",
            description="The IMDb part: some 172,000 usable rows.",
            databases=("imdb",),
        ),
        ImdbWikiConfig(name="full", description="Both parts."),
        ImdbWikiConfig(
            name="subset_60k",
            description="60,000 usable rows of both parts, sampled at random.",
            sample=60_000,
        ),
        ImdbWikiConfig(
            name="partial",
            description="The usable rows of any part of the release.",
            partial=True,
        ),
    ]
    HOMEPAGE = PAGE
    LICENSE = "Academic research only; the photographs are their authors'."
    SUPPORTS_BEAM = True
    FEATURES = {
        "path": tfds.features.Text(),
        "name": tfds.features.Text(),
        "celeb_id": tfds.features.Scalar(np.int64),
        "age": tfds.features.Scalar(np.int64),
        "face_score": tfds.features.Scalar(np.float32),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Download the archives of cropped faces, wiki_crop.tar and imdb_crop.tar, from {PAGE} "
        "into one folder, and pass it as --manual_dir=FOLDER."
    )

    # Images of each database: usable ones, or all of the release where it is missing.
    _usable: dict[str, int] = {}

    def _missing_files(self, folder: Path) -> list[str]:
        config = self.builder_config
        lacking = [release.missing_files(folder, database) for database in config.databases]
        if config.partial and not all(lacking):
            return []
        return [name for names in lacking for name in names]

    def _read_release(self, manual_dir: Path) -> Release:
        config = self.builder_config
        databases = [
            name for name in config.databases if not release.missing_files(manual_dir, name)
        ]
        rows, dropped, summary = [], {}, []
        self._usable = {name: release.RELEASED[name] for name in config.databases}
        for database in databases:
            metadata = release.read_metadata(manual_dir, database)
            where = f"{database}.mat"
            usable, dropped[database] = release.usable_rows(metadata, database, config.noise, where)
            rows += usable
            self._usable[database] = len(usable)
            rules = ", ".join(f"{n:,} {rule}" for rule, n in dropped[database].items() if n)
            summary.append(
                f"{where}: {len(metadata.full_path):,} rows, {len(usable):,} usable; "
                f"dropped: {rules or 'none'}"
            )
        if not rows:
            raise UserError(f"{manual_dir}: no usable row; {'; '.join(summary)}")
        if config.sample is not None:
            if len(rows) < config.sample:
                raise UserError(
                    f"{manual_dir}: {len(rows):,} usable rows, fewer than the {config.sample:,} "
                    f"that the config {config.name} samples: use --config=full"
                )
            rows = release.sample(rows, config.sample, config.seed)
            summary.append(f"sampled: {len(rows):,} usable rows, seed {config.seed}")
        splits = release.split_by_person(rows, config.test_share, config.seed)
        if empty := [name for name, chosen in splits.items() if not chosen]:
            raise UserError(
                f"{manual_dir}: {len(rows):,} usable rows, and none of their persons falls into "
                f"{' or '.join(empty)}: there are too few persons"
            )
        return Release(
            sources=[release.image_source(manual_dir, database) for database in databases],
            splits=splits,
            partial=config.partial,
            advice=", or use --config=partial for a part of it",
            metadata={
                "rows_dropped": dropped,
                "test_share": config.test_share,
                "seed": config.seed,
            },
            summary=summary,
        )

    def _kept(self, splits: dict[str, list[release.Row]]) -> None:
        """Adds a notice with the size of a partial copy, and writes the labels as a CSV table."""
        kept = Counter(row.path.split("_crop/")[0] for rows in splits.values() for row in rows)
        lost = any(kept[name] < (1 - MAX_LEFT_OUT) * count for name, count in self._usable.items())
        if self.builder_config.partial and lost:
            parts = [f"{kept[name]:,} of {n:,} {name} images" for name, n in self._usable.items()]
            self.info.metadata["notice"] = f"A part of IMDb-Wiki: {' and '.join(parts)}."
        with (Path(self.data_path) / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(
                ["path", "split", "age", "age_group", "gender", "name", "celeb_id", "face_score"]
            )
            for split, rows in splits.items():
                for row in sorted(rows, key=lambda row: row.path):
                    group = "" if row.age is None else AGE_GROUPS[row.age_group]
                    gender = GENDERS[row.gender] if row.gender >= 0 else ""
                    score = f"{row.face_score:.4f}"
                    labels = [row.age, group, gender, row.name, row.celeb_id, score]
                    table.writerow([row.path, split, *labels])

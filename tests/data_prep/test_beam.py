"""Needs the extra "beam", in an environment of its own: elsewhere these tests are skipped."""

import importlib.util
import json
from pathlib import Path

import pytest

from agenet.data.records import open_records
from tests.conftest import run_program
from tests.data_prep.test_imdb_wiki import pack, run, write_release

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed"
    ),
    pytest.mark.slow,
    # TFDS asks what the protobuf that Beam takes, which is older, deprecates.
    pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning"),
]


def run_on_beam(
    manual_dir: Path, data_dir: Path, config: str, runner: str = "DirectRunner", fails: bool = False
) -> str:
    return run_program(
        *("scripts/prepare.py", "imdb_wiki", f"--config={config}"),
        *(f"--manual_dir={manual_dir}", f"--data_dir={data_dir}"),
        f"--beam_options=--runner={runner}",
        fails=fails,
    )


def test_beam_prepares_the_same_data_set(tmp_path: Path) -> None:
    for database in ("wiki", "imdb"):
        table = write_release(tmp_path, 300, database)
        (tmp_path / f"{database}_crop" / table["full_path"][7]).unlink()
        (tmp_path / f"{database}_crop" / table["full_path"][8]).write_bytes(b"not a picture")
    pack(tmp_path, "imdb")  # one archive, one folder
    run(tmp_path, tmp_path / "plain", "full")
    run_on_beam(tmp_path, tmp_path / "beam", "full")
    plain, beam = (
        open_records("imdb_wiki/full", str(tmp_path / name)) for name in ("plain", "beam")
    )
    assert len(beam.images) == 596
    assert beam.fingerprint() == plain.fingerprint()
    assert list(beam.images) == list(plain.images)
    folders = [tmp_path / name / "imdb_wiki/full/1.0.0" for name in ("plain", "beam")]
    for name in ("metadata.json", "labels.csv"):
        assert len({(folder / name).read_text() for folder in folders}) == 1
    assert sorted(p.name for p in folders[0].iterdir()) == sorted(
        p.name for p in folders[1].iterdir()
    )
    missing = json.loads((folders[1] / "metadata.json").read_text())["pictures_missing"]
    assert missing["count"] == 2


def test_failure_leaves_no_files(tmp_path: Path) -> None:
    table = write_release(tmp_path)
    for path in table["full_path"][:3]:
        (tmp_path / "wiki_crop" / path).write_bytes(b"not a picture")
    output = run_on_beam(tmp_path, tmp_path / "data", "wiki", fails=True)
    assert "3 of 60 images do not decode" in output.splitlines()[-1]
    assert not (tmp_path / "data").exists()
    for path in table["full_path"][:3]:
        (tmp_path / "wiki_crop" / path).unlink()
    output = run_on_beam(tmp_path, tmp_path / "data", "wiki", fails=True)
    assert "3 of 60 images are missing" in output.splitlines()[-1]
    assert not (tmp_path / "data").exists()


def test_unknown_runner(tmp_path: Path) -> None:
    write_release(tmp_path, 3)
    output = run_on_beam(tmp_path, tmp_path / "data", "wiki", "NoRunner", fails=True)
    last = output.splitlines()[-1]
    assert last.startswith("error: --beam_options '--runner=NoRunner': ")
    assert not (tmp_path / "data").exists()

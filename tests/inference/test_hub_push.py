import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agenet import Predictor
from agenet.data.records import Records
from agenet.errors import UserError
from agenet.files import hash_file, write_json
from agenet.inference import hub_push
from agenet.inference.hub_card import write_card
from agenet.runs import launch, reporting
from agenet.weights.hub import parse_address
from tests.hub_server import TOKEN, Hub, serve, use
from tests.tiny import tiny_config, use_records

# What the hub's client does wrong with its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

ADDRESS = parse_address("hf://alice/faces")
FILES = {"README.md", "agenet.json", "metrics.json", "model.onnx", "weights.safetensors"}


@pytest.fixture(scope="module")
def finished(
    make_records: Callable[..., Records], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A finished tiny run with its report, but without the report's figures."""

    def write_report(workdir: Path, summary: dict[str, Any], *_: object) -> None:
        write_json(workdir / "report.json", summary)

    report_run = launch.report_run
    with pytest.MonkeyPatch.context() as patch:
        use_records(make_records(), patch.setattr)
        patch.setattr(launch, "report_run", report_run)
        patch.setattr(reporting, "write_report", write_report)
        workdir = tmp_path_factory.mktemp("runs") / "tiny"
        launch.launch(tiny_config(dataset__data_dir="/home/me/data"), workdir, "command")
        yield workdir


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with serve() as hub:
        use(hub.endpoint, tmp_path, monkeypatch)
        yield hub


def test_push_and_load(
    finished: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub_push.push(finished, ADDRESS, licence="CC BY 4.0", private=True)
    repository = hub.repositories["alice/faces"]
    assert repository.private
    files = repository.commits[repository.heads["main"]]
    assert set(files) == FILES
    printed = capsys.readouterr().out
    assert f"published at {hub.endpoint}/alice/faces/commit/" in printed
    assert TOKEN not in printed
    # Nothing of this machine.
    for name in ("README.md", "metrics.json", "agenet.json"):
        assert b"/home/me" not in files[name] and str(finished).encode() not in files[name]

    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    (expected,) = Predictor.load(finished).predict([image])
    (found,) = Predictor.load("hf://alice/faces").predict([image])
    assert found == expected
    # The same run once more changes nothing; another branch is another revision.
    hub_push.push(finished, parse_address("hf://alice/faces@v2"), licence="MIT")
    assert Predictor.load("hf://alice/faces@v2").predict([image]) == [expected]
    assert repository.commits[repository.heads["main"]] == files


def test_card(finished: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "folder"
    hub_push.push(finished, ADDRESS, licence="CC BY 4.0", folder=folder)
    assert {path.name for path in folder.iterdir()} == FILES
    listed = json.loads((folder / "agenet.json").read_bytes())["files"]
    assert set(listed) == FILES - {"agenet.json"}
    for name, entry in listed.items():
        assert entry["sha256"] == hash_file(folder / name)
        assert entry["size"] == (folder / name).stat().st_size
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "agenet"
    assert card.data.datasets == ["noise"]
    assert {"agenet", "age-estimation", "gender-classification", "tiny"} <= set(card.data.tags)
    report = json.loads((finished / "report.json").read_bytes())
    accuracy = report["evaluation"]["tasks"]["age"]["accuracy"]
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["age accuracy"] == round(accuracy, 5)
    assert f"| age | {report['evaluation']['tasks']['age']['count']} | Accuracy % |" in card.text
    assert 'Predictor.load("hf://alice/faces")' in card.text
    with pytest.raises(UserError, match="is not an empty folder: name another one"):
        hub_push.push(finished, ADDRESS, folder=folder)


def test_licence_that_the_hub_does_not_know(finished: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from agenet.training.finished_run import open_finished

    report = json.loads((finished / "report.json").read_bytes())
    spec = open_finished(finished).spec
    for licence, name in (
        ("", "not-stated"),
        ("For research: ask\n---\nme", "for-research-ask-me"),
    ):
        header = write_card(ADDRESS, spec, report, licence).split("---\n")[1]
        assert f"license: other\nlicense_name: {name}\n" in header


def test_mistakes_are_one_line(
    finished: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(run: Path = finished, address: str = "hf://alice/faces") -> str:
        with pytest.raises(UserError) as caught:
            hub_push.push(run, parse_address(address))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "needs an account: set HF_TOKEN" in message()
    monkeypatch.setenv("AGENET_OFFLINE", "1")
    assert "AGENET_OFFLINE forbids to publish" in message()
    monkeypatch.delenv("AGENET_OFFLINE")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "is not the folder of a run" in message(tmp_path / "missing")
    assert "the hub denies this (403)" in message(address="hf://bob/faces")
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoints" in message(tmp_path / "empty")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "the hub denies this (401)" in message()
    assert not hub.repositories

"""Publishes a finished run on a hub: weights, ONNX, model card, metrics, and the list of files."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from agenet import __version__
from agenet.errors import UserError
from agenet.evaluation.comparison.files import read_report
from agenet.files import is_address, write_file, write_json
from agenet.inference.export import TOLERANCE, check_answers, export, in_batches
from agenet.inference.export_faces import find_faces
from agenet.inference.hub_card import write_card
from agenet.inference.network import TrainedNetwork
from agenet.places.fetching import fetch
from agenet.training.finished_run import read_run_weights
from agenet.weights.connection import is_offline
from agenet.weights.hub import (
    MANIFEST,
    WEIGHTS,
    HubAddress,
    hub_errors_explained,
    import_hub,
    write_manifest,
)
from agenet.weights.load import save_weights

_ONNX, _CARD, _METRICS = "model.onnx", "README.md", "metrics.json"
# Parts of a report that say nothing about the machine, its folders or single images.
_PUBLIC = ("dataset", "model", "training", "evaluation")


def push(
    run: Path,
    address: HubAddress,
    *,
    licence: str = "",
    private: bool = False,
    folder: Path | None = None,
) -> None:
    """Writes the files of a run and publishes them in one commit; prints what and where.

    Args:
        run: the work directory of a finished run, or its address.
        address: of the repository, which is created if it is missing; a revision is a branch.
        licence: of the weights, such as "CC BY 4.0".
        private: whether a new repository is private.
        folder: write the files there, and send nothing.

    Raises:
        UserError: the run is not finished, there is no access, or the network cannot be exported.
    """
    hub = import_hub("publishing on the hub")
    if folder is None:
        if is_offline():
            raise UserError("AGENET_OFFLINE forbids to publish: --dry-run=FOLDER writes the files")
        if hub.get_token() is None:
            raise UserError(
                "publishing on the hub needs an account: set HF_TOKEN, or run `hf auth login`"
            )
    if is_address(run):
        run = fetch(run)
    if not run.is_dir():
        raise UserError(f"{run} is not the folder of a run")
    if folder is not None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not an empty folder: name another one")
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        target = folder or Path(temporary)
        files = write_files(run, address, target, licence)
        for file in files:
            print(f"  {file:<20} {(target / file).stat().st_size:>12,} bytes")
        if folder is None:
            print(f"published at {_upload(hub, address, target, files, private)}")
        else:
            print(f"written to {folder}; nothing was sent")


def write_files(run: Path, address: HubAddress, folder: Path, licence: str) -> list[str]:
    """Writes all files of a repository into an empty folder and returns their names.

    Raises:
        UserError: the run is not finished or has no report, or the network cannot be exported.
    """
    weights = read_run_weights(run)
    if not (run / "report.json").is_file():
        raise UserError(f"{run} has no report: agenet evaluate --workdir={run} writes it")
    report = read_report(run / "report.json")
    if licence:
        weights = replace(weights, spec=replace(weights.spec, licence=licence))
    network = TrainedNetwork(weights)
    save_weights(folder / WEIGHTS, weights)
    faces = find_faces("", "", network.stored_size, False)
    content, exported = export(network, "onnx", False, faces)
    check_answers(in_batches(jax.jit(network.make_forward())), exported, faces, TOLERANCE)
    write_file(folder / _ONNX, content)
    write_json(folder / _METRICS, {name: report[name] for name in _PUBLIC if name in report})
    card = write_card(address, weights.spec, report, licence)
    write_file(folder / _CARD, card.encode())
    names = [WEIGHTS, _ONNX, _CARD, _METRICS]
    write_manifest(folder, names, __version__)
    return [*names, MANIFEST]


def _upload(hub: Any, address: HubAddress, folder: Path, files: list[str], private: bool) -> str:
    """Sends the files in one commit, so that nobody sees a part; returns its address."""
    api, branch = hub.HfApi(), address.revision or None
    with hub_errors_explained(address):
        # None: an organisation may have a default of its own.
        api.create_repo(address.repository, private=private or None, exist_ok=True)
        if branch:
            api.create_branch(address.repository, branch=branch, exist_ok=True)
        commit = api.create_commit(
            address.repository,
            [hub.CommitOperationAdd(name, str(folder / name)) for name in files],
            commit_message="Weights, ONNX, card and metrics, written by agenet push",
            revision=branch,
        )
    return str(commit.commit_url)

"""Writes the predictions of a network for a data set to a file that another network learns from."""

import io
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from agenet.data.order import evaluation_batches
from agenet.data.records import Records
from agenet.data.stream import StreamedImages
from agenet.distributed.mesh import batch_sharded, create_mesh, place, replicated
from agenet.errors import UserError
from agenet.files import write_file
from agenet.inference.network import load_network
from agenet.runs.batches import AT_ONCE
from agenet.runs.teacher import fingerprint, is_file_of_predictions


def write_predictions(teacher: str, records: Records, path: Path) -> dict[str, np.ndarray]:
    """Predicts the centre of every image of a data set and writes what `distill.teacher` takes.

    Args:
        teacher: the `--workdir` of a run, a file of weights, or "default".
        records: the data set.
        path: of the file, which must end in .npz, see `agenet.runs.teacher`.

    Returns:
        The arrays of the file.

    Raises:
        UserError: there is no such network, or the file cannot be written.
    """
    if not is_file_of_predictions(path.name):
        raise UserError(f"{path}: name a file that ends in .npz")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}: create it first")
    network = load_network(teacher)
    mesh, spec = create_mesh(), network.spec
    on_all, count = replicated(mesh), len(records.fold)
    predict, variables = network.create_for_stored()
    step = jax.jit(predict, in_shardings=(on_all, batch_sharded(mesh)), out_shardings=on_all)
    variables = place(jax.tree.map(np.asarray, dict(variables)), on_all)
    parts = list(evaluation_batches(np.arange(count), AT_ONCE * mesh.size))
    found: list[dict[str, np.ndarray]] = []
    images = StreamedImages(records, size=network.stored_size, mesh=mesh)
    with tqdm(total=count, unit=" images", disable=not sys.stderr.isatty()) as bar:
        for batch, (_, mask) in zip(images.batches(parts), parts, strict=True):
            results = jax.device_get(step(variables, batch["image"]))
            found.append({name: values[mask] for name, values in results.items()})
            bar.update(int(mask.sum()))
    arrays: dict[str, Any] = {
        f"{name}_log_probs": np.concatenate([part[name] for part in found]).astype(np.float32)
        for name in found[0]
    }
    arrays |= {
        "index": np.arange(count, dtype=np.int32),
        "dataset": fingerprint(records),
        "teacher": np.frombuffer(spec.to_json().encode(), np.uint8),
    }
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    try:
        write_file(path, content.getvalue())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another") from error
    return arrays

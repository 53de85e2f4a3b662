"""Prepares the faces and initial weights of a comparison as files that all frameworks read."""

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.evaluation.metrics import largest_class_share
from agenet.files import write_file
from agenet.frameworks.comparison.engine import OUTPUTS, flavour_of, write_faces
from agenet.frameworks.comparison.results import Results, log
from agenet.labels import TASK_CLASSES


def prepare_data(results: Results, args: Namespace) -> None:
    """Writes faces for each network and size, and initial weights for each seed.

    The cost is measured on noise and needs neither.
    """
    wanted = {
        (model, size)
        for part in ("agreement", "results")
        if part in args.parts
        for model, size in getattr(args, part).items()
    }
    missing = [pair for pair in sorted(wanted) if not folder_of(results, *pair).is_dir()]
    seeds = [
        (m, s, seed)
        for m, s in sorted(wanted)
        for seed in range(args.seeds)
        if not initial_of(results, m, s, seed).exists()
    ]
    before = results.content.get("data", {})
    if not missing and not seeds and ("largest_class" in before or not wanted):
        return
    from agenet.data.decoding import load_faces
    from agenet.data.records import open_records
    from agenet.data.splits import make_splits
    from agenet.runs.config import IMAGENET_MEAN, IMAGENET_STD

    log("reading the data set")
    records = open_records(args.dataset, args.data_dir)
    splits = make_splits(
        records,
        tasks=tuple(TASK_CLASSES),
        protocol="subject",
        test_fold=args.test_fold,
        validation_fraction=0.1,
        seed=0,
    )
    rng = np.random.default_rng(0)
    train, test = (
        np.sort(rng.permutation(rows)[: count or len(rows)])
        for rows, count in ((splits.train, args.train_faces), (splits.test, args.test_faces))
    )
    data: dict[str, Any] = {
        "name": records.name,
        "fingerprint": records.fingerprint(),
        "notice": records.notice,
        "test_fold": args.test_fold,
        "split": "by subject",
        "split_seed": 0,
        "all_train_faces": len(splits.train),
        "all_test_faces": len(splits.test),
        "train_faces": len(train),
        "test_faces": len(test),
        "test_persons": len(np.unique(records.subject_id[test])),
    }
    found = {model: _find(model, args.init) for model in sorted({model for model, _ in wanted})}
    for model, (initial, text) in found.items():
        if initial is None and text != "random":
            log(f"{model} has no pre-trained weights: {text}")
    data["initial"] = before.get("initial", {}) | {m: text for m, (_, text) in found.items()}
    labels = np.stack([records.labels[task] for task in TASK_CLASSES], 1).astype(np.int32)
    data["largest_class"] = largest_class(labels[test])
    results.content["data"] = data
    rows = np.concatenate([train, test])
    for model, size in missing:
        log(f"{model}, {size} px: faces")
        initial = found[model][0]
        mean, std = (initial.mean, initial.std) if initial else (IMAGENET_MEAN, IMAGENET_STD)
        folder = folder_of(results, model, size)
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_faces(
            unfinished,
            images=load_faces(records, rows, round(size * 8 / 7)),
            labels=labels[rows],
            train=np.arange(len(train)),
            test=np.arange(len(train), len(rows)),
            mean=np.array(mean, np.float32),
            std=np.array(std, np.float32),
        )
        np.save(unfinished / "subject.npy", records.subject_id[rows])
        unfinished.rename(folder)
    for model, size, seed in seeds:
        log(f"{model}, {size} px: initial weights, seed {seed}")
        write_initial(initial_of(results, model, size, seed), model, size, seed, found[model][0])
    results.save()


def largest_class(labels: np.ndarray) -> dict[str, float | None]:
    """Each task's accuracy of always predicting the largest class of labels [N, 2]."""
    known = {task: labels[labels[:, i] >= 0, i] for i, task in enumerate(TASK_CLASSES)}
    return {task: largest_class_share(np.bincount(of)) for task, of in known.items()}


def folder_of(results: Results, model: str, size: int) -> Path:
    return results.folder / "data" / f"{model}-{size}"


def initial_of(results: Results, model: str, size: int, seed: int) -> Path:
    return results.folder / "data" / f"{model}-{size}-seed{seed}.safetensors"


def _find(model: str, init: str) -> tuple[Any, str]:
    """Finds pre-trained weights of the network that all frameworks have, or says why not."""
    from agenet.runs.initial_weights import find_initial

    if init == "random" or model == "levi_hassner":
        return None, "random"
    try:
        initial = find_initial(init, model, flavour_of(model))
        assert initial is not None
        initial.read()
    except UserError as error:
        return None, f"random ({str(error).splitlines()[0][:200]})"
    return initial, f"{initial.init}, a new classifier"


def write_initial(path: Path, model: str, size: int, seed: int, initial: Any) -> None:
    """Writes the initial variables by agenet's names, for all frameworks.

    Args:
        path: the file to write.
        model: the network.
        size: side of its input in pixels.
        seed: of the random variables.
        initial: pre-trained weights for all but the classifier, or None.
    """
    import jax
    import safetensors.numpy
    from flax.traverse_util import flatten_dict

    from agenet.models import create_model
    from agenet.training.state import create_variables
    from agenet.weights.load import load_into

    network = create_model(model, {"classes": OUTPUTS}, flavour=flavour_of(model))
    variables: Any = jax.jit(lambda: create_variables(network, size, seed))()
    if initial is not None:
        variables = load_into(jax.device_get(variables), initial.read(), ("heads",))
    flat = flatten_dict(variables, sep="/")
    tensors = {name: np.array(leaf) for name, leaf in flat.items()}
    write_file(path, safetensors.numpy.save(tensors))

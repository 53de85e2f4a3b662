"""Runs the parts of a comparison: agreement, results and cost, one process per framework."""

import contextlib
import dataclasses
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agenet.frameworks.comparison.data import folder_of, initial_of
from agenet.frameworks.comparison.difference import differences
from agenet.frameworks.comparison.engine import AGE, VARIANTS, Faces, Work, read_faces
from agenet.frameworks.comparison.engines import ENGINES
from agenet.frameworks.comparison.results import Results, log
from agenet.frameworks.timing import Figures
from agenet.frameworks.worker import Worker


def _worker(name: str, work: Work, args: Namespace) -> Worker:
    return Worker(name, ENGINES[name], work, args.limit)


def agree(
    results: Results, args: Namespace, there: list[str], model: str, size: int, optimizer: str
) -> None:
    """Computes logits, gradients and parameters in each framework, and their differences."""
    out = results.folder / "agreement"
    out.mkdir(exist_ok=True)
    work = Work(
        model,
        size,
        platform=args.platform,
        folder=folder_of(results, model, size).resolve(),
        optimizer=optimizer,
        exact=True,
    )
    runs = [(name, "float32") for name in there]
    # float64 is the reference; bfloat16 is what people use on a GPU.
    runs += [("torch", "float64")] if "torch" in there else []
    runs += [(name, "bfloat16") for name in there] if args.platform == "gpu" else []
    batch, changed = args.agreement_batch, False
    prefix = f"agreement/{model}/{size}/{optimizer}"
    for name, dtype in runs:
        # A second run with images changed in their last bit shows the effect of rounding.
        keys = {False: f"{prefix}/{name}/{dtype}", True: f"{prefix}/{name}/{dtype}/perturbed"}
        left = {moved: key for moved, key in keys.items() if not results.has(key)}
        if dtype == "float64":
            left.pop(True, None)
        if not left:
            continue
        changed = True
        with _worker(name, dataclasses.replace(work, dtype=dtype), args) as worker:
            log(f"agreement: {model}, {optimizer}: starting {name}, {dtype}")
            described = worker.start()
            for perturbed, key in left.items():
                log(key)
                started = time.time()
                stem = key.removeprefix("agreement/").replace("/", "-")
                file = (out / f"{stem}.safetensors").resolve()
                initial = initial_of(results, model, size, 0).resolve()
                answer = worker.ask("agree", initial, file, batch, args.steps, perturbed)
                about = {"framework": name, "model": model, "size": size, "dtype": dtype}
                about |= {"optimizer": optimizer, "batch_size": batch, "perturbed": perturbed}
                about |= {"file": file.name, "steps": args.steps}
                results.add(key, about, described | answer, started)
    if changed or not results.has(f"differences/{model}/{size}/{optimizer}"):
        parts = {k: p for k, p in results.content["parts"].items() if k.startswith(prefix + "/")}
        started = time.time()
        rows = differences(out, parts, initial_of(results, model, size, 0))
        about = {"model": model, "size": size, "optimizer": optimizer}
        results.add(f"differences/{model}/{size}/{optimizer}", about, {"rows": rows}, started)
        if set(there) == set(ENGINES) and not any("error" in part for part in parts.values()):
            # No later part needs these files.
            for part in parts.values():
                (out / part["file"]).unlink(missing_ok=True)


def train(
    results: Results, args: Namespace, there: list[str], model: str, size: int, regular: bool
) -> None:
    """Trains in each framework with each seed, and tests after each epoch."""
    out = results.folder / "answers"
    out.mkdir(exist_ok=True)
    regime = "regular" if regular else "plain"
    work = Work(
        model,
        size,
        platform=args.platform,
        folder=folder_of(results, model, size).resolve(),
        regular=regular,
    )
    for name in there:
        keys = {s: f"results/{model}/{size}/{regime}/{name}/{s}" for s in range(args.seeds)}
        left = {seed: key for seed, key in keys.items() if not results.has(key)}
        if not left:
            continue
        with _worker(name, work, args) as worker:
            log(f"results: {model}, {regime}: starting {name}")
            described = worker.start()
            for seed, key in left.items():
                log(key)
                started = time.time()
                file = (out / f"{key.removeprefix('results/').replace('/', '-')}.npy").resolve()
                initial = initial_of(results, model, size, seed).resolve()
                answer = worker.ask(
                    "train_all", initial, file, args.results_batch, args.epochs, seed
                )
                about = {"framework": name, "model": model, "size": size, "regime": regime}
                about |= {"seed": seed, "batch_size": args.results_batch, "optimizer": "adam"}
                result = answer if isinstance(answer, dict) else {"epochs": answer}
                if "epochs" in result:
                    result |= {"intervals": test_intervals(work.folder, file)}
                results.add(key, about | {"file": file.name}, described | result, started)


def test_intervals(folder: Path, file: Path) -> dict[str, Any]:
    """95 % intervals of the test accuracies, by a bootstrap over subjects."""
    from agenet.evaluation.bootstrap import estimate_with_intervals

    faces: Faces = read_faces(folder)
    logits, labels = np.load(file), faces.labels[faces.test]
    _, subject = np.unique(np.load(folder / "subject.npy")[faces.test], return_inverse=True)
    subjects, intervals = int(subject.max()) + 1, {}
    for column, task in enumerate(("age", "gender")):
        part = logits[:, :AGE] if task == "age" else logits[:, AGE:]
        known = labels[:, column] >= 0
        right = np.bincount(subject, known & (part.argmax(1) == labels[:, column]), subjects)
        count = np.bincount(subject, known, subjects)

        def figures(weights: np.ndarray, right: Any = right, count: Any = count) -> Any:
            return {"accuracy": weights @ right / np.maximum(weights @ count, 1)}

        intervals[task] = estimate_with_intervals(figures, subjects)[1]["accuracy"]
    return intervals


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


def measure(results: Results, args: Namespace, there: list[str], model: str, size: int) -> None:
    """Times the variants of each framework that are not timed yet; they take turns."""
    key = f"cost/{model}/{size}"
    started, batch = time.time(), args.cost_batch
    before = results.content["parts"].get(key, {}).get("variants", {})
    done = {name: figures for name, figures in before.items() if "error" not in figures}
    wanted = {
        f"{name}, {label}": (name, label, variant)
        for name in there
        for label, variant in VARIANTS[name].items()
        if args.platform in variant.platforms
        and (args.platform not in variant.asked or label in args.variants)
        and f"{name}, {label}" not in done
    }
    if not wanted:
        return
    found: dict[str, Figures] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for each, (name, label, variant) in wanted.items():
            log(f"{key}: starting {each}")
            work = Work(model, size, variant.dtype, platform=args.platform, options=variant.options)
            with environment(variant.environment):
                worker = stack.enter_context(_worker(name, work, args))
                begun = time.perf_counter()
                figures = worker.start()
                prepared = worker.ask("prepare", "training", batch)
            figures |= {"framework": name, "variant": label, "text": variant.text}
            figures |= {"rounds": args.rounds, "seconds": args.seconds}
            if "error" in prepared:
                figures["error"] = prepared["error"]
            else:
                figures["first_step_seconds"] = time.perf_counter() - begun
                workers[each] = worker
            found[each] = figures
        for stage in ("training", "inference"):
            _take_turns(workers, found, stage, batch, args.rounds, args.seconds)
        for each, (_, _, variant) in wanted.items():
            with environment(variant.environment):
                found[each] |= results.record(started)
    about = {"model": model, "size": size, "batch_size": batch, "platform": args.platform}
    found = done | found
    failed = not any("training" in figures for figures in found.values())
    error = {"error": "no framework has run"} if failed else {}
    results.add(key, about, {"variants": found} | error, started)


def _take_turns(
    workers: dict[str, Worker],
    found: dict[str, Figures],
    stage: str,
    batch: int,
    rounds: int,
    seconds: float,
) -> None:
    if stage == "inference":
        for name, worker in workers.items():
            worker.ask("release")
            prepared = worker.ask("prepare", stage, batch)
            if "error" in prepared:
                found[name]["error"] = prepared["error"]
    able = [name for name in workers if "error" not in found[name]]
    for number in range(rounds):
        log(f"{stage}: round {number + 1} of {rounds}")
        for name in able[number % len(able) :] + able[: number % len(able)] if able else []:
            times = workers[name].ask("measure", stage, seconds)
            if isinstance(times, dict):
                found[name]["error"] = times["error"]
                continue
            found[name].setdefault(stage, []).append(batch / float(np.median(times)))
    for name in able if stage == "training" else []:
        # Measured now that the optimizer has allocated its state.
        found[name].setdefault("training_peak_bytes", workers[name].ask("peak"))

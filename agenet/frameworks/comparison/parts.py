"""Runs the parts of a comparison: agreement, results and cost, one process per framework."""

import contextlib
import dataclasses
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agenet.frameworks.comparison.data import folder_of, initial_of
from agenet.frameworks.comparison.difference import differences
from agenet.frameworks.comparison.engine import VARIANTS, Work, read_faces, split_tasks
from agenet.frameworks.comparison.engines import ENGINES
from agenet.frameworks.comparison.results import Results, log
from agenet.frameworks.timing import Figures
from agenet.frameworks.worker import Worker


def _worker(name: str, work: Work, args: Namespace) -> Worker:
    return Worker(name, ENGINES[name], work, args.limit)


def run_missing(
    results: Results,
    args: Namespace,
    name: str,
    work: Work,
    method: str,
    tasks: Mapping[str, tuple[int, tuple[Any, ...], Figures]],
    finish: Callable[[Any, Path], Figures] = lambda answer, file: answer,
) -> bool:
    """Runs a framework for the parts that have no result; returns whether there were any.

    Args:
        results: receives the results.
        args: see `agenet.frameworks.comparison.compare.compare`.
        name: of the framework.
        work: what it is to do.
        method: of the framework; takes the file of the initial weights and one to write.
        tasks: by the key of the part, the seed of the initial weights, further arguments of the
            method, and settings to keep with the result.
        finish: turns the answer of the framework and the file that it wrote into the result.
    """
    left = {key: task for key, task in tasks.items() if not results.has(key)}
    if not left:
        return False
    with _worker(name, work, args) as worker:
        log(f"{method}: {work.model}, {work.optimizer}: starting {name}, {work.dtype}")
        described = worker.start()
        for key, (seed, arguments, settings) in left.items():
            log(key)
            started, file = time.time(), results.file_of(key).resolve()
            initial = initial_of(results, work.model, work.size, seed).resolve()
            answer = worker.ask(method, initial, file, *arguments)
            about = {"framework": name, "model": work.model, "size": work.size}
            about |= {"dtype": work.dtype, "optimizer": work.optimizer, "file": file.name}
            results.add(key, about | settings, described | finish(answer, file), started)
    return True


def agree(
    results: Results, args: Namespace, there: list[str], model: str, size: int, optimizer: str
) -> None:
    """Computes logits, gradients and parameters in each framework, and their differences."""
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
    about, changed = {"batch_size": args.agreement_batch, "steps": args.steps}, False
    prefix = f"agreement/{model}/{size}/{optimizer}"
    for name, dtype in runs:
        # A second run with images changed in their last bit shows the effect of rounding.
        tasks = {
            f"{prefix}/{name}/{dtype}{'/perturbed' * perturbed}": (
                0,
                (*about.values(), perturbed),
                about | {"perturbed": perturbed},
            )
            for perturbed in ((False,) if dtype == "float64" else (False, True))
        }
        changed |= run_missing(
            results, args, name, dataclasses.replace(work, dtype=dtype), "agree", tasks
        )
    key, started = f"differences/{model}/{size}/{optimizer}", time.time()
    if not changed and results.has(key):
        return
    parts = {k: p for k, p in results.content["parts"].items() if k.startswith(prefix + "/")}
    folder = results.folder / "agreement"
    rows = differences(folder, parts, initial_of(results, model, size, 0))
    settings = {"model": model, "size": size, "optimizer": optimizer}
    results.add(key, settings, {"rows": rows}, started)
    if set(there) == set(ENGINES) and not any("error" in part for part in parts.values()):
        # No later part needs these files.
        for part in parts.values():
            (folder / part["file"]).unlink(missing_ok=True)


def train(
    results: Results, args: Namespace, there: list[str], model: str, size: int, regular: bool
) -> None:
    """Trains in each framework with each seed, and tests after each epoch."""
    folder = folder_of(results, model, size).resolve()
    work = Work(model, size, platform=args.platform, folder=folder, regular=regular)
    about = {"regime": "regular" if regular else "plain", "batch_size": args.results_batch}

    def finish(answer: Any, file: Path) -> Figures:
        if isinstance(answer, dict):
            return answer  # an error
        return {"epochs": answer, "intervals": test_intervals(folder, file)}

    for name in there:
        tasks = {
            f"results/{model}/{size}/{about['regime']}/{name}/{seed}": (
                seed,
                (args.results_batch, args.epochs, seed),
                about | {"seed": seed},
            )
            for seed in range(args.seeds)
        }
        run_missing(results, args, name, work, "train", tasks, finish)


def test_intervals(folder: Path, file: Path) -> dict[str, Any]:
    """95 % intervals of the test accuracies, by a bootstrap over subjects."""
    from agenet.evaluation.bootstrap import estimate_with_intervals, weighted_means

    faces = read_faces(folder)
    labels = faces.labels[faces.test]
    subject_id, intervals = np.load(folder / "subject.npy")[faces.test], {}
    for column, (task, part) in enumerate(split_tasks(np.load(file)).items()):
        known = labels[:, column] >= 0
        correct = (part.argmax(1) == labels[:, column])[known]
        subjects, subject = np.unique(subject_id[known], return_inverse=True)
        means = weighted_means({"accuracy": correct}, subject)
        intervals[task] = estimate_with_intervals(means, len(subjects))[1]["accuracy"]
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
    """Times the variants of each framework that are not timed yet; they take turns.

    Every round is saved, so that an interrupted comparison goes on with the next one.
    """
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
    kept = results.kept_rounds(key, args.seconds)
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
            figures |= kept.get(each, {})
            if "error" in prepared:
                figures["error"] = prepared["error"]
            else:
                figures["first_step_seconds"] = time.perf_counter() - begun
                workers[each] = worker
            found[each] = figures
        for stage in ("training", "inference"):
            for _ in _take_turns(workers, found, stage, batch, args.rounds, args.seconds):
                results.keep_rounds(key, found, args.seconds)
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
) -> Iterator[None]:
    """Measures `rounds` rates of each framework, less those that are there; yields after each."""
    if stage == "inference":
        for name, worker in workers.items():
            worker.ask("release")
            prepared = worker.ask("prepare", stage, batch)
            if "error" in prepared:
                found[name]["error"] = prepared["error"]
    able = [name for name in workers if "error" not in found[name]]
    for number in range(rounds):
        turns = able[number % len(able) :] + able[: number % len(able)] if able else []
        missing = [name for name in turns if len(found[name].get(stage, [])) <= number]
        log(f"{stage}: round {number + 1} of {rounds}{', kept' * bool(turns and not missing)}")
        for name in missing:
            times = workers[name].ask("measure", stage, seconds)
            if isinstance(times, dict):
                found[name]["error"] = times["error"]
                continue
            found[name].setdefault(stage, []).append(batch / float(np.median(times)))
        yield
    for name in able if stage == "training" else []:
        # Measured now that the optimizer has allocated its state.
        found[name].setdefault("training_peak_bytes", workers[name].ask("peak"))

"""Small runs for the tests: `TinyNet` on images in memory, in this process or in one to kill."""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from agenet.data.records import Records
from agenet.data.resident import ResidentImages
from agenet.distributed.mesh import create_mesh
from agenet.distributed.processes import distributed_session
from agenet.errors import one_line_errors
from agenet.models import MODELS
from agenet.runs import create, dry_run, launch
from agenet.runs.config import RunConfig, parse_config
from agenet.runs.experiment import Experiment
from agenet.training.checkpoints import Checkpoints
from configs import default
from tests.conftest import TinyNet

_experiments: dict[tuple[str, RunConfig], Experiment] = {}


def tiny_config(**fields: Any) -> RunConfig:
    """A run of 20 steps, 7 to an epoch, on `make_records()`; in `fields` "__" is the dot."""
    MODELS["tiny"] = TinyNet  # A config is checked for the name of its network.
    config = default.get_config()
    config.model.name = "tiny"
    config.input.size = 20
    config.dataset.validation_fraction = 0.2
    config.batch_size = 16
    config.duration = "20 steps"
    config.evaluate_every = "6 steps"
    config.checkpoint_every = "5 steps"
    config.log_every = "4 steps"
    config.trackers = ()
    config.schedule.learning_rate = 0.01
    return parse_config(
        unflatten_dict(
            flatten_dict(config.to_dict(), sep=".")
            | {name.replace("__", "."): value for name, value in fields.items()},
            sep=".",
        )
    )


def use_records(
    records: Records, patch: Callable[[Any, str, Any], None] = setattr, devices: int | None = 1
) -> None:
    """Makes runs train `TinyNet` on `records`, on the first devices, and end without a report."""
    MODELS["tiny"] = TinyNet
    patch(launch, "prepare_if_asked", lambda dataset: None)
    patch(launch, "report_run", lambda *args, **options: None)
    patch(create, "open_records", lambda *args: records)

    def create_experiment(config: RunConfig) -> Experiment:
        # Once for each config, for to trace the steps anew takes most of a launch.
        key = records.fingerprint(), config
        if key not in _experiments:
            mesh = create_mesh(jax.devices()[:devices])
            _experiments[key] = create.create_experiment(config, mesh)
        return _experiments[key]

    patch(launch, "create_experiment", create_experiment)


def on_batch(call: int, action: Callable[[], None], patch: Callable[..., None] = setattr) -> None:
    """Has `action` done before the batch number `call`, from 1, of training or validation."""
    batch, calls = ResidentImages.batch, iter(range(1, sys.maxsize))

    def counted(*args: Any) -> dict[str, jax.Array]:
        if next(calls) == call:
            action()
        return batch(*args)

    patch(ResidentImages, "batch", counted)


def read_rows(workdir: Path) -> list[dict[str, float]]:
    """The rows of a run, without speeds."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "pictures_per_second"} for row in rows]


def result(workdir: Path) -> dict[str, Any]:
    """All that a run leaves: its latest and best states as bytes, their steps, and its rows."""
    found: dict[str, Any] = {"rows": read_rows(workdir)}
    checkpoints = Checkpoints(workdir, read_only=True)
    for name, manager in (("latest", checkpoints._latest), ("best", checkpoints._best)):
        found[name] = manager.latest_step()
        # Whatever devices it was saved from.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        args = ocp.args.Composite(state=ocp.args.StandardRestore(fallback_sharding=here))
        state = manager.restore(found[name], args=args)["state"] if found[name] is not None else {}
        for path, leaf in jax.tree.leaves_with_path(state):
            found[name + jax.tree_util.keystr(path)] = np.asarray(leaf).tobytes()
    checkpoints.close()
    return found


def run_process(
    workdir: Path, records: Records, config: RunConfig, **events: Any
) -> tuple[int, str]:
    """Launches a run in a process of its own: its exit code, negative for a signal, and stderr.

    It is killed before file operation number `kill_at` under `checkpoints/`, with batch number
    `kill_with`, or `kill_after` seconds after its second batch; is told to stop with batch number
    `stop_at`; gets SIGINT with batch number `interrupt_at` and, while it saves, again; gets the
    signal `end_with` before it has opened its data. With `dry_run` it is one.
    """
    return run_processes((workdir, records, config, events))[0]


def run_processes(*runs: tuple[Path, Records, RunConfig, Any]) -> list[tuple[int, str]]:
    """As `run_process`, several at once: with the events `processes`, the flag, and `env`."""
    # Forked from a server that has imported everything but started nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny"])
    with contextlib.ExitStack() as stack:
        started = []
        for run in runs:
            stderr = stack.enter_context(tempfile.NamedTemporaryFile("r"))
            process = context.Process(target=_run, args=(*run, stderr.name))
            process.start()
            started.append((process, stderr))
        for process, _ in started:
            process.join(300)
            process.kill()
        return [(process.exitcode or 0, stderr.read()) for process, stderr in started]


def _run(
    workdir: Path, records: Records, config: RunConfig, events: dict[str, Any], stderr: str
) -> None:
    os.environ.update(events.get("env", {}))
    processes = events.get("processes", "")
    jax.config.update("jax_num_cpu_devices", 4 if processes else 1)
    os.dup2(os.open(stderr, os.O_WRONLY), sys.stderr.fileno())
    tqdm.set_lock(threading.RLock())  # Its own is a semaphore, which a kill leaves behind.
    use_records(records, devices=None)

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if "kill_at" in events:
        operations = iter(range(1, sys.maxsize))

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event == "open":
                writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            else:
                writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
            # Folders are emptied by names relative to an open folder.
            inside = writes and ("checkpoints" in str(args[0]) or args[-1] not in (-1, None))
            if inside and next(operations) == events["kill_at"]:
                kill()

        sys.addaudithook(hook)
    if "kill_with" in events:
        on_batch(events["kill_with"], kill)
    if "kill_after" in events:
        timer = threading.Timer(events["kill_after"], kill)
        timer.daemon = True
        on_batch(2, timer.start)
    if "end_with" in events:
        launch.prepare_if_asked = lambda dataset: signal.raise_signal(events["end_with"])
    if "stop_at" in events:
        on_batch(int(events["stop_at"]), lambda: signal.raise_signal(signal.SIGTERM))
    if "interrupt_at" in events:
        on_batch(int(events["interrupt_at"]), lambda: signal.raise_signal(signal.SIGINT))

        def save(*args: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)

        Checkpoints.save_latest = save  # type: ignore[method-assign]
    with one_line_errors(), distributed_session(processes):
        program = dry_run.dry_run if "dry_run" in events else launch.launch
        program(config, workdir, "command")

"""Checks whether a training could start and what memory it would need, without training."""

import logging
import os
from pathlib import Path

import jax

from agenet.data.decoding import load_faces
from agenet.data.placement import host_memory
from agenet.distributed.compilation_cache import enable_compilation_cache
from agenet.errors import UserError
from agenet.runs.config import RunConfig, to_dict
from agenet.runs.console import log_start
from agenet.runs.description import describe
from agenet.runs.initial_state import create_initial_state
from agenet.runs.launch import (
    check_same_everywhere,
    open_experiment,
    read_report,
    read_saved,
)
from agenet.runs.logging import log_to, quiet_libraries
from agenet.runs.memory import explain_needs, measure, memory_errors_explained

log = logging.getLogger(__name__)


def dry_run(config: RunConfig, workdir: Path, command: str) -> None:
    """Checks config, data, initial weights, sharding and memory, and logs what it found.

    Nothing is written to `workdir`, which need not exist, and no data set is prepared.

    Raises:
        UserError: the error that would keep the training from starting or resuming.
    """
    quiet_libraries()
    check_same_everywhere({"command": "dry run", "config": to_dict(config)})
    with log_to(process=jax.process_index()):
        enable_compilation_cache()
        _check_writable(workdir)
        saved = read_saved(workdir)
        experiment = open_experiment(config, saved, workdir)
        check_same_everywhere(experiment.identity)
        log_start(describe(experiment), experiment.plan, experiment.mesh, workdir, command)
        with memory_errors_explained(experiment):
            size = experiment.config.input.size
            load_faces(experiment.records, experiment.splits.train[:1], size)
            if saved is None and experiment.initial is not None:
                create_initial_state(experiment)  # Raises if the weights do not fit.
            needs = measure(experiment)
        for line in needs.lines():
            log.info("%s", line)
        if needs.placement != "stream":
            decoded = needs.images / (jax.process_count() if needs.placement == "device" else 1)
            log.info("host: decoded images, %.3f GB of %.1f GB", decoded / 1e9, host_memory() / 1e9)
        if not needs.fits:
            raise UserError(explain_needs(experiment))
        if saved is not None and read_report(workdir, config.test_views) is not None:
            log.info("this run is finished; for a new one, give another --workdir")
        elif saved is not None:
            log.info("would resume from step %d of %d", saved["step"], experiment.plan.total_steps)
        log.info("it fits; nothing was trained and nothing written to %s", workdir)


def _check_writable(workdir: Path) -> None:
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"--workdir {workdir} cannot be written to: name another one")

"""Estimates the memory that a training needs on each device, and explains when it is exhausted."""

import errno
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from agenet.data.placement import choose_placement, host_memory, min_free_memory
from agenet.data.resident import label_columns
from agenet.distributed.mesh import batch_sharded
from agenet.errors import UserError
from agenet.runs.batches import AT_ONCE, cached_rows, reason_for_images
from agenet.runs.compilation import compiling
from agenet.runs.experiment import Experiment
from agenet.runs.memory_advice import Line, Needs, advise, gigabytes

log = logging.getLogger(__name__)


def measure(
    experiment: Experiment, step: int | None = None, free_host: float | None = None
) -> Needs:
    """Determines what a training needs; nothing is computed or decoded.

    Args:
        experiment: the run.
        step: the result of `measure_step` for its batch size; by default the step is compiled.
        free_host: bytes that the host has for images; by default what is free now. All processes
            must then call this.

    Raises:
        UserError: the images do not fit where the config says.
    """
    mesh, config = experiment.mesh, experiment.config
    state = {name: _nbytes(part) for name, part in vars(experiment.abstract_state()).items()}
    if experiment.teacher:
        state["teacher"] = _nbytes(experiment.teacher.teacher.arrays)
    limit, on_cpu = device_memory(mesh), mesh.devices.flat[0].platform == "cpu"
    count = -(-len(experiment.records.fold) // mesh.size) * mesh.size
    images = count * config.input.size**2 * 3
    # When images are placed, the state is there already.
    free = math.inf if on_cpu else limit - sum(state.values())
    own = {"free_device": free, "free_host": free_host}
    placement, _ = choose_placement(
        config.input.placement,
        images,
        devices=mesh.size,
        processes=jax.process_count(),
        **(min_free_memory(free) if free_host is None else own),
    )
    return Needs(
        state=state,
        images=images,
        placement=placement,
        devices=mesh.size,
        step=measure_step(experiment, config.batch_size) if step is None else step,
        batch_size=config.batch_size,
        limit=limit,
        on_cpu=on_cpu,
    )


def measure_step(experiment: Experiment, batch_size: int) -> int:
    """Bytes that the largest step of a training needs on each device, besides the state."""
    state, config = experiment.abstract_state(), experiment.config
    train_step: Any = experiment.train_step
    feature_step: Any = experiment.feature_step
    steps, batch = [], _abstract_batch(experiment, batch_size)
    if not reason_for_images(config, experiment.backbone_is_frozen):
        at_once = AT_ONCE * experiment.mesh.size
        images = _abstract_batch(experiment, at_once)
        variables = {
            name: {"backbone": tree["backbone"]}
            for name, tree in state.variables.items()
            if "backbone" in tree
        }
        features = jax.eval_shape(feature_step, variables, images, None)
        rows = len(cached_rows(experiment.splits, config.test_views))
        cached = experiment.plan.epochs * len(experiment.splits.train) + rows
        # Two vectors for each image in every epoch and in evaluation.
        if cached * 2 * features.shape[-1] * 4 <= config.feature_cache_bytes:
            steps.append((feature_step.lower(variables, images, 0), images))
            batch = _abstract_batch(experiment, batch_size, features.shape[-1])
    steps.append((train_step.lower(state, batch), batch))
    needs = []
    for lowered, batch in steps:
        with compiling("a step, to measure its memory"):
            found = lowered.compile().memory_analysis()
        new = found.output_size_in_bytes - found.alias_size_in_bytes
        share = _nbytes(batch) // experiment.mesh.size
        needs.append(found.temp_size_in_bytes + max(new, 0) + share)
    return max(needs)


def _abstract_batch(
    experiment: Experiment, batch_size: int, features: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a batch of images, or of vectors of so many `features`."""
    columns: dict[str, Any] = label_columns(experiment.records, np.zeros(batch_size, np.int64))
    shape = (experiment.config.input.size,) * 2 + (3,)
    columns["features" if features else "image"] = jax.ShapeDtypeStruct(
        (batch_size, features) if features else (batch_size, *shape),
        jnp.float32 if features else jnp.uint8,
    )
    sharding = batch_sharded(experiment.mesh)
    return {
        name: jax.ShapeDtypeStruct(column.shape, column.dtype, sharding=sharding)
        for name, column in columns.items()
    }


def device_memory(mesh: Mesh) -> float:
    """Bytes of memory of each device; infinite if unknown. CPU devices share the host's."""
    devices = mesh.local_devices
    if devices[0].platform == "cpu":
        return host_memory() / len(devices)
    return min((device.memory_stats() or {}).get("bytes_limit", math.inf) for device in devices)


@contextmanager
def memory_errors_explained(experiment: Experiment) -> Iterator[None]:
    """Turns out-of-memory errors, of device or host, into a line that suggests what would fit."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError, OSError) as error:
        if not is_exhausted(error):
            raise
        raise UserError(_explain(experiment, error)) from error


def is_exhausted(error: BaseException) -> bool:
    """Whether an error of XLA, NumPy or the system means that memory was too small."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM


def _explain(experiment: Experiment, error: BaseException) -> str:
    config = experiment.config
    if not isinstance(error, jax.errors.JaxRuntimeError):
        nbytes = len(experiment.records.fold) * config.input.size**2 * 3
        return (
            f"this machine, which has {gigabytes(host_memory())}, ran out of memory; the decoded "
            f"images take {gigabytes(nbytes)}: use --config.input.placement=stream, or smaller "
            f"ones with --config.input.size (now {config.input.size})"
        )
    return explain_needs(experiment)


def explain_needs(experiment: Experiment) -> str:
    """The message for a training that does not fit, see `agenet.runs.memory_advice.advise`."""
    batch_size, accumulate = experiment.config.batch_size, experiment.config.accumulate
    unit = experiment.mesh.size * accumulate
    small = max(batch_size // 4 // unit, 1) * unit
    log.info("out of memory: compiling steps with smaller batches, to see what fits")
    # Smaller: if the compiler itself ran out of memory, it would do so again.
    try:
        line = Line({size: measure_step(experiment, size) for size in (small, 2 * small)})
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        return (
            f"out of memory, even for a step on {2 * small} images: use a smaller "
            "--config.batch_size or --config.input.crop_size, if no other program uses the device"
        )
    # Not what is free now: the images may already occupy the host's memory.
    return advise(measure(experiment, line.at(batch_size), math.inf), line, accumulate)


def _nbytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

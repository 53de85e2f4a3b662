"""Estimates the memory that a training needs on each device, and suggests settings that fit."""

import errno
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
from agenet.runs.experiment import Experiment

log = logging.getLogger(__name__)

# Share of a device's memory; the rest is lost to fragmentation and libraries.
_USABLE = 0.9
_STATE = {
    "params": "parameters",
    "batch_stats": "running statistics",
    "opt_state": "optimizer",
    "average": "averaged parameters",
}


@dataclass(frozen=True)
class Needs:
    """Bytes of memory that a training needs.

    Attributes:
        state: on each device, by parts of the state.
        images: all of them, decoded, padded for the devices.
        placement: "device" if each device holds its share of the images, "host" if the host holds
            all of them, "stream" if they are decoded batch by batch.
        devices: number of devices that batches and images are divided among.
        step: on each device, a batch and all intermediate results of a step with `batch_size`.
        batch_size: of that step.
        limit: memory of a device; infinite if that is unknown.
        on_cpu: whether it is the host's memory.
    """

    state: Mapping[str, int]
    images: int
    placement: str
    devices: int
    step: int
    batch_size: int
    limit: float
    on_cpu: bool = False

    @property
    def parts(self) -> dict[str, int]:
        """What each device needs, the largest part first."""
        resident = self.images // self.devices if self.placement == "device" else 0
        parts = {"state": sum(self.state.values()), "images": resident, "activations": self.step}
        return dict(sorted(parts.items(), key=lambda part: -part[1]))

    @property
    def total(self) -> int:
        """What each device needs in total."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= _USABLE * self.limit

    def lines(self) -> list[str]:
        """A table in GB."""
        rows = [(_STATE[name], size) for name, size in self.state.items() if name in _STATE]
        rows.append(("batch, activations and gradients of a step", self.step))
        where = {
            "device": f"images, 1/{self.devices} of {_gb(self.images)}",
            "host": "images, which are on the host",
            "stream": "images, which are decoded batch by batch",
        }
        rows.append((where[self.placement], self.parts["images"]))
        has = "" if math.isinf(self.limit) else f" of {_gb(self.limit)}"
        table = [f"  {name:<48} {size / 1e9:9.3f}" for name, size in rows]
        table.append(f"  {'total':<48} {self.total / 1e9:9.3f}{has}")
        return ["memory of each device, GB:", *table]


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
    steps, batch = [], abstract_batch(experiment, batch_size)
    if not reason_for_images(config, experiment.backbone_is_frozen):
        at_once = AT_ONCE * experiment.mesh.size
        images = abstract_batch(experiment, at_once)
        variables = {
            name: {"backbone": tree["backbone"]}
            for name, tree in state.variables.items()
            if "backbone" in tree
        }
        features = jax.eval_shape(feature_step, variables, images, None)
        if _feature_bytes(experiment, features.shape[-1]) <= config.feature_cache_bytes:
            steps.append((feature_step.lower(variables, images, 0), images))
            batch = abstract_batch(experiment, batch_size, features.shape[-1])
    steps.append((train_step.lower(state, batch), batch))
    needs = []
    for lowered, batch in steps:
        found = lowered.compile().memory_analysis()
        new = found.output_size_in_bytes - found.alias_size_in_bytes
        share = _nbytes(batch) // experiment.mesh.size
        needs.append(found.temp_size_in_bytes + max(new, 0) + share)
    return max(needs)


def _feature_bytes(experiment: Experiment, width: int) -> int:
    """Size of all cached features: two for each image in every epoch and in evaluation."""
    splits, test_views = experiment.splits, experiment.config.test_views
    views = experiment.plan.epochs * len(splits.train) + len(cached_rows(splits, test_views))
    return views * 2 * width * 4


def abstract_batch(
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


@dataclass(frozen=True)
class Line:
    """Bytes that a step needs as a function of its batch size, from two measured sizes.

    Activations are proportional to the batch size, everything else is constant.

    >>> line = Line({8: 180, 16: 260})
    >>> line.at(32), line.largest(1000, multiple=8)
    (420, 88)
    """

    measured: Mapping[int, int]

    def at(self, batch_size: int) -> int:
        (small, low), _ = sorted(self.measured.items())
        return round(low + self._slope * (batch_size - small))

    def largest(self, room: float, *, multiple: int) -> int:
        """The largest multiple of `multiple`, or 0, that needs at most `room` bytes."""
        (small, low), _ = sorted(self.measured.items())
        return max(int((room - low) / self._slope + small), 0) // multiple * multiple

    @property
    def _slope(self) -> float:
        (small, low), (large, high) = sorted(self.measured.items())
        return max(high - low, 1) / (large - small)


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
            f"this machine, which has {_gb(host_memory())}, ran out of memory; the decoded "
            f"images take {_gb(nbytes)}: use --config.input.placement=stream, or smaller "
            f"ones with --config.input.size (now {config.input.size})"
        )
    return explain_needs(experiment)


def explain_needs(experiment: Experiment) -> str:
    """One line for a training that does not fit: its largest parts, and settings that fit."""
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


def advise(needs: Needs, line: Line, accumulate: int = 1) -> str:
    """The message of `explain_needs`.

    Args:
        needs: of the training.
        line: needs of its step as a function of the batch size.
        accumulate: number of parts of a batch.
    """
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in needs.parts.items() if size)
    room = _USABLE * needs.limit - needs.total + needs.step
    unit = needs.devices * accumulate
    # If the limit is unknown, or should have sufficed, half the batch is the only advice.
    size = needs.batch_size // 2 // unit * unit if needs.fits else line.largest(room, multiple=unit)
    advice = [f"--config.batch_size={size}"] if size else []
    if size and not needs.on_cpu:  # On CPUs parts are unrolled, which saves nothing.
        counts = range(accumulate + 1, needs.batch_size + 1)
        smaller = (n for n in counts if needs.batch_size <= size // accumulate * n)
        divides = (n for n in smaller if needs.batch_size % (n * needs.devices) == 0)
        advice += [f"--config.accumulate={n}" for n in divides][:1]
    if needs.parts["images"] > needs.limit / 10 and not needs.on_cpu:
        advice.append("--config.input.placement=host")
    advice.append("a smaller --config.input.crop_size")
    return (
        f"out of memory: a step on {needs.batch_size} images takes, on each device, {parts}, of "
        f"{_gb(needs.limit)}: use {', or '.join(advice)}"
    )


def _nbytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _gb(nbytes: float) -> str:
    if math.isinf(nbytes):
        return "unknown memory"
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e9:,.3f} GB"

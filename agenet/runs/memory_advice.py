"""What a training needs of each device's memory, as a table, and settings that would fit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Share of a device's memory; the rest is lost to fragmentation and libraries.
_USABLE = 0.9
_STATE = {
    "params": "parameters",
    "batch_stats": "running statistics",
    "opt_state": "optimizer",
    "average": "averaged parameters",
    "teacher": "teacher",
}


@dataclass(frozen=True)
class Needs:
    """Bytes of memory that a training needs.

    Attributes:
        state: on each device, by parts of the state, with the teacher if there is one.
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
            "device": f"images, 1/{self.devices} of {gigabytes(self.images)}",
            "host": "images, which are on the host",
            "stream": "images, which are decoded batch by batch",
        }
        rows.append((where[self.placement], self.parts["images"]))
        has = "" if math.isinf(self.limit) else f" of {gigabytes(self.limit)}"
        table = [f"  {name:<48} {size / 1e9:9.3f}" for name, size in rows]
        table.append(f"  {'total':<48} {self.total / 1e9:9.3f}{has}")
        return ["memory of each device, GB:", *table]


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


def advise(needs: Needs, line: Line, accumulate: int = 1) -> str:
    """One line for a training that does not fit: its largest parts, and settings that fit.

    Args:
        needs: of the training.
        line: needs of its step as a function of the batch size.
        accumulate: number of parts of a batch.
    """
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in needs.parts.items() if size)
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
        f"{gigabytes(needs.limit)}: use {', or '.join(advice)}"
    )


def gigabytes(nbytes: float) -> str:
    """A size for messages, such as "2.5 GB"."""
    if math.isinf(nbytes):
        return "unknown memory"
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e9:,.3f} GB"

"""Estimates time and memory of the report's trainings on GPUs and TPUs, from published rates.

python scripts/estimate.py

Counts per image come from the step compiled here in float32: arithmetic as XLA counts it before
optimising for a processor, memory traffic and temporaries after fusing for a CPU. In bfloat16
activations take half of that; parameters, gradients and Adam's moments stay float32. A step takes
as long as the slowest of arithmetic, memory traffic, all-reduce of gradients and input, each at the
same assumed share of the published rate. Devices exchange the images that they store, see
`agenet.distributed.mesh.make_take`. Each device has the config's batch size; validation is left
out.
"""

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from agenet.data.augment import (
    make_eval_transform,
    make_train_transform,
)
from agenet.distributed.mesh import create_mesh
from agenet.errors import ArgumentParser, one_line_errors
from agenet.evaluation.summary import duration
from agenet.models import create_model
from agenet.runs.config import RunConfig, parse_config
from agenet.runs.series import table
from agenet.training.losses import describe_heads
from agenet.training.optimizers import create_optimizer
from agenet.training.state import create_state, create_variables
from agenet.training.steps import make_feature_step, make_train_step

GB = 1e9
COUNTED_AT = 16  # images
EPOCHS = 5
SHARE = 0.5  # of published rates that is reached
DECODED = 10_000.0  # images per second and core
HOST = 0.001  # seconds of host time per step
HEADS = {"age": "groups", "gender": "softmax"}
# Adience's faces with an official label outside of test fold 0 and validation, and those stored.
ADIENCE = (12_798, 19_370)
IMDB_WIKI = (523_051, 523_051)  # all images, as in the report


@dataclass(frozen=True)
class Machine:
    """Devices of one kind with their published rates, and their host."""

    name: str
    devices: int
    flops: float  # of each, bfloat16 operations a second, dense
    bandwidth: float  # bytes a second of its memory
    memory: float  # bytes
    link: float  # bytes a second that it can send while it receives as many
    cores: int  # of the host


# https://www.nvidia.com/en-us/data-center/h100/ (SXM): 1,979 teraFLOPS with sparsity, which is
# twice the dense rate, 3.35 TB/s, 80 GB, NVLink 900 GB/s in both directions together. Hosts: a GPU
# of a cloud with 16 cores, and the two 56-core processors of a DGX H100.
# https://cloud.google.com/tpu/docs/v5e: 197 TFLOPS, 819 GB/s, 16 GB, links of 1,600 Gb/s; 224
# virtual CPUs for eight chips.
MACHINES = (
    Machine("1 x H100", 1, 989.5e12, 3.35e12, 80 * GB, 450 * GB, 16),
    Machine("8 x H100", 8, 989.5e12, 3.35e12, 80 * GB, 450 * GB, 112),
    Machine("TPU v5e-8", 8, 197e12, 819 * GB, 16 * GB, 100 * GB, 112),
)
# Trainings: name, config, (images of an epoch, images stored).
TRAININGS = (
    ("Levi-Hassner, Adience", "levi_hassner_adience", ADIENCE),
    ("ResNet-50 frozen, Adience", "resnet50_adience", ADIENCE),
    ("EfficientNet-B0 frozen, Adience", "effnet_adience", ADIENCE),
    ("EfficientNet-B0 whole, Adience", "effnet_adience_unfrozen", ADIENCE),
    ("EfficientNet-B0 whole, IMDb-Wiki", "effnet_imdb_wiki", IMDB_WIKI),
)


@dataclass(frozen=True)
class Counts:
    """Operations and bytes of a step, per image and for the parameters."""

    flops: float  # per image
    traffic: float  # bytes per image, bfloat16
    activations: float  # bytes per image, bfloat16
    parameters: int
    trained: int  # of these; 0: the backbone's features are computed once for each epoch
    size: int  # side of stored images in pixels

    @property
    def state(self) -> float:
        """Bytes of parameters, and of two moments of those that are trained, in float32."""
        return 4 * self.parameters + 8 * self.trained

    @property
    def updating(self) -> float:
        """Bytes that an update moves: gradients read, parameters and moments read and written."""
        return 7 * 4 * self.trained


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table; counting compiles each network, a minute or two for all."""
    ArgumentParser(description=main.__doc__).parse_args(arguments)
    rows, known = [], dict[Any, Counts]()
    for number, (name, config_name, (trained_on, stored)) in enumerate(TRAININGS, 1):
        print(f"{number} of {len(TRAININGS)}: compiling {name}", file=sys.stderr, flush=True)
        config = importlib.import_module(f"configs.{config_name}").get_config()
        config = parse_config(config.to_dict())
        frozen = config.freeze == "backbone"
        key = (config.model.name, frozen)
        counts = known[key] = known.get(key) or count(config, frozen)
        for machine in MACHINES:
            found = estimate(counts, machine, config.batch_size, trained_on, stored)
            rows.append([name, machine.name, *found])
    header = ["Training", "Machine", "Images/s", f"{EPOCHS} epochs", "Limit", "GB a device"]
    print(table([*header, "Images"], rows))
    print(
        f"\nAt {SHARE:.0%} of published rates; {DECODED:,.0f} images decoded per second and core, "
        f"{1000 * HOST:g} ms of host time per step; without start and compilation."
    )


def estimate(
    counts: Counts, machine: Machine, batch: int, trained_on: int, stored: int
) -> list[str]:
    """Cells of a row: rate, time, limit, memory per device, placement of images."""
    image_bytes = stored * counts.size**2 * 3
    needs = counts.state + 4 * counts.trained + batch * counts.activations
    each = image_bytes / machine.devices
    resident = each <= 0.5 * (machine.memory - counts.state)
    decode = DECODED * machine.cores
    passed_on = (machine.devices - 1) * batch * counts.size**2 * 3 / machine.link / SHARE
    ring = 2 * (machine.devices - 1) / machine.devices * 4 * counts.trained
    moved = batch * counts.traffic + counts.updating
    limits = {
        "arithmetic": batch * counts.flops / machine.flops / SHARE,
        "memory traffic": moved / machine.bandwidth / SHARE,
        "all-reduce": ring / machine.link / SHARE,
        "host": HOST,
        "input": passed_on if resident else batch * machine.devices / decode,
    }
    limit = max(limits, key=lambda name: limits[name])
    rate = batch * machine.devices / limits[limit]
    seconds = EPOCHS * trained_on / rate + (stored / decode if resident else 0)
    where = f"on the devices, {each / GB:.1f} GB each" if resident else "streamed"
    memory = f"{(needs + each * resident) / GB:.1f} of {machine.memory / GB:.0f}"
    return [f"{rate:,.0f}", duration(seconds), limit, memory, where]


def count(config: RunConfig, frozen: bool) -> Counts:
    """Compiles the step of a config's network, or of its frozen backbone, and counts."""
    outputs, ordinal = describe_heads(HEADS)
    model = create_model(config.model.name, outputs, ordinal=ordinal)
    size = config.input.crop_size or model.backbone.input_size
    stored = config.input.size or round(size * 8 / 7)
    tx, mesh = create_optimizer(config.optimizer, lambda step: 1e-4), create_mesh(jax.devices()[:1])
    state = jax.eval_shape(lambda: create_state(model, tx, create_variables(model, size, 0)))
    column = jax.ShapeDtypeStruct((COUNTED_AT,), jnp.int32)
    batch = dict.fromkeys(("age", "gender", "age_low", "age_high", "row"), column) | {
        "mask": jax.ShapeDtypeStruct((COUNTED_AT,), jnp.bool_),
        "image": jax.ShapeDtypeStruct((COUNTED_AT, stored, stored, 3), jnp.uint8),
    }
    mean, std = (0.0,) * 3, (1.0,) * 3
    train = make_train_transform(size, mean, std, config.augment)

    def lower() -> Any:
        if frozen:
            evaluate = make_eval_transform(size, mean, std)
            step: Any = make_feature_step(model, train, evaluate, seed=0, mesh=mesh)
            return step.lower(state.variables, batch, 0)
        step = make_train_step(
            model, tx, train, heads=HEADS, seed=0, steps_per_epoch=100, mesh=mesh
        )
        return step.lower(state, batch)

    # Counts what GPUs and TPUs run: networks have other lowerings on CPUs.
    with mock.patch.object(jax.lax, "platform_dependent", lambda *a, default, **_: default(*a)):
        flops = lower().cost_analysis()["flops"]
    compiled = lower().compile()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    counts = Counts(flops / COUNTED_AT, 0, 0, parameters, 0 if frozen else parameters, stored)
    traffic = compiled.cost_analysis()["bytes accessed"] - counts.updating
    temporaries = compiled.memory_analysis().temp_size_in_bytes - 4 * counts.trained
    return dataclasses.replace(
        counts, traffic=traffic / 2 / COUNTED_AT, activations=temporaries / 2 / COUNTED_AT
    )


if __name__ == "__main__":
    with one_line_errors():
        main()

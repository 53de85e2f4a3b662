"""What a training takes of memory is counted right, and too much of it is one helpful line."""

import dataclasses
import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenet.data import decoding, placement, resident
from agenet.data.records import Records
from agenet.distributed.mesh import create_mesh
from agenet.errors import UserError
from agenet.models import MODELS
from agenet.runs import launch, memory
from agenet.runs.create import create_experiment
from agenet.runs.experiment import Experiment
from agenet.runs.memory import measure, measure_step, memory_errors_explained
from agenet.runs.memory_advice import Line, Needs, advise
from tests.conftest import TinyNet
from tests.tiny import tiny_config, use_records

GB = 10**9
Create = Callable[..., Experiment]


@pytest.fixture
def create(make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch) -> Create:
    """Opens a tiny run, on the given number of devices."""
    use_records(make_records(), monkeypatch.setattr)

    def create(devices: int = 1, **fields: Any) -> Experiment:
        mesh = create_mesh(jax.devices()[:devices])
        return create_experiment(tiny_config(**fields), mesh)

    return create


def test_counts(create: Create) -> None:
    needs = measure(create())
    assert needs.state["params"] == 330 * 4
    assert needs.state["batch_stats"] == 2 * 8 * 4
    assert needs.state["opt_state"] == (2 * 330 + 2) * 4  # Adam's moments, and two counts.
    assert (needs.images, needs.placement) == (200 * 20 * 20 * 3, "device")
    assert needs.total == sum(needs.state.values()) + needs.images + needs.step
    batch = 16 * (20 * 20 * 3 + 5 * 4 + 1)
    # Convolution's map, before and after batch normalisation, at the least.
    assert needs.step > batch + 2 * 16 * 8 * 8 * 8 * 4
    assert needs.fits and needs.lines()[-1].split()[:2] == ["total", f"{needs.total / 1e9:.3f}"]
    divided = measure(create(devices=8))
    assert divided.parts["images"] == needs.images // 8
    assert divided.parts["state"] == needs.parts["state"]
    assert divided.step < needs.step / 4
    assert measure(create(input__placement="host")).parts["images"] == 0


def test_placement_is_what_all_processes_choose(
    create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(devices=2)  # 240 kB of images.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for free, where in ((250_000, "device"), (230_000, "stream")):
        others = [math.inf, free, "another machine"]
        monkeypatch.setattr(placement, "all_gather", lambda own, others=others: [own, others])
        assert measure(run, 0).placement == where
    # Where one process is out of memory, others are not.
    monkeypatch.setattr(placement, "all_gather", None)
    assert measure(run, 0, math.inf).placement == "device"


def test_frozen_backbones_take_the_memory_of_their_features(create: Create) -> None:
    whole = create(init="random", freeze="none")
    frozen = dataclasses.replace(
        whole, model=whole.model.clone(backbone=TinyNet(frozen_stages=1)), tx=whole.tx
    )
    of_features = measure_step(frozen, 16)
    assert of_features == measure_step(frozen, 32)  # 64 images at a time, whatever the batch.
    assert of_features > 64 * (20 * 20 * 3 + 16 * 16 * 3 * 4)
    # Images pass through the whole network where features are not kept.
    config = whole.config
    for changes in (
        {"augment": dataclasses.replace(config.augment, mixup=0.2)},
        {"feature_cache_bytes": 0},
        {"feature_cache": "off"},
    ):
        given = dataclasses.replace(frozen, config=dataclasses.replace(config, **changes))
        assert measure_step(given, 32) > 1.5 * measure_step(given, 16)


def test_needs_of_a_step_lie_on_a_line(create: Create) -> None:
    run = create()
    line = Line({size: measure_step(run, size) for size in (16, 32)})
    for size in (64, 8):
        assert line.at(size) == pytest.approx(measure_step(run, size), rel=0.1)
    assert line.largest(line.at(40), multiple=8) == 40
    assert line.largest(line.at(40) - 1, multiple=8) == 32
    assert line.largest(0, multiple=8) == 0


NEEDS = Needs(
    state={"params": 2 * GB, "opt_state": 4 * GB},
    images=80 * GB,
    placement="device",
    devices=4,
    step=200 * GB,
    batch_size=64,
    limit=80 * GB,
)
LINE = Line({8: 25 * GB, 16: 50 * GB})


@pytest.mark.parametrize(
    ("changes", "accumulate", "message"),
    [
        # 72 GB are usable and 26 taken: 46 of 3.125 each.
        ({}, 1, "activations 200.0 GB, images 20.0 GB, state 6.0 GB, of 80.0 GB: use "),
        ({}, 1, "use --config.batch_size=12, or --config.accumulate=8, or --config.input.place"),
        ({}, 2, "use --config.batch_size=8, or --config.accumulate=16, or"),
        ({"placement": "host"}, 1, "batch_size=20, or --config.accumulate=4, or a smaller"),
        ({"devices": 64}, 1, ": use a smaller --config.input.crop_size"),
        ({"on_cpu": True}, 1, "use --config.batch_size=12, or a smaller --config.input"),
        ({"limit": math.inf}, 1, "of unknown memory: use --config.batch_size=32, or --config.acc"),
        ({"limit": 300 * GB}, 1, "--config.batch_size=32"),  # Others take what this device has.
    ],
)
def test_advice(changes: dict[str, Any], accumulate: int, message: str) -> None:
    line = advise(dataclasses.replace(NEEDS, **changes), LINE, accumulate)
    assert message in line and "\n" not in line


class Sorting(nn.Module):
    """Sorts so many numbers for each pixel that one batch takes four times this machine."""

    FLAVOURS = ("sorting",)
    STAGES = (("conv",),)
    input_size = 16

    flavour: str = "sorting"
    frozen_stages: int = 0
    dtype: np.dtype = np.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(1, (16, 16), padding="VALID", name="conv")(images)
        if images.shape[0] == 1:
            return x  # Parameters are drawn with one image.
        many = memory.host_memory() // 4 // 4
        noise = jnp.sin(jax.lax.stop_gradient(x) * jnp.arange(many, dtype=jnp.float32))
        return x + jnp.sort(noise, axis=-1)[..., :1]


def overcommits() -> bool:
    """Whether the system promises any memory, and ends the process that uses it."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    within_limit = memory.host_memory() < machine  # Of a control group, which is met by use alone.
    return within_limit or Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "1"


def test_exhausted_by_a_step(
    create: Create, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if overcommits():
        pytest.skip("this system promises memory that it does not have")
    monkeypatch.setitem(MODELS, "sorting", Sorting)
    with pytest.raises(UserError) as caught:
        launch.launch(tiny_config(model__name="sorting"), tmp_path, "command")
    assert isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)
    message = str(caught.value)
    assert message.startswith("out of memory: a step on 16 images takes, on each device, activ")
    assert "\n" not in message
    assert "UserError: out of memory" in (tmp_path / "train.log").read_text()
    size = int(message.partition("--config.batch_size=")[2].partition(",")[0])
    run = create(model__name="sorting")
    state = sum(measure(run, 0).parts.values())
    usable = 0.9 * memory.host_memory()
    assert measure_step(run, size) + state <= usable < measure_step(run, size + 1) + state


def test_exhausted_by_a_validation(
    create: Create, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(Experiment, "eval_step", exhausted)
    with pytest.raises(UserError, match=r"16 images takes.*use --config\.batch_size=8, or"):
        # Not a run of another test, whose step is there already.
        launch.launch(tiny_config(seed=5), tmp_path, "command")


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_exhausted_by_decoding(
    create: Create, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhausted(*_: Any) -> None:
        raise error

    monkeypatch.setattr(resident, "allocate_images", exhausted)
    with pytest.raises(UserError, match=r"ran out of memory; .* --config\.input\.size \(now 20\)$"):
        launch.launch(tiny_config(), tmp_path, "command")


def test_opencv_out_of_memory_is_not_a_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        error = cv2.error("Insufficient memory")
        error.code = -4
        raise error

    monkeypatch.setattr(cv2, "imdecode", exhausted)
    with pytest.raises(MemoryError):
        decoding.decode_image(b"image", np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("INTERNAL: a bug"), OSError(errno.ENOSPC, "full")]
)
def test_other_errors_pass(create: Create, error: Exception) -> None:
    with pytest.raises(type(error)), memory_errors_explained(create()):
        raise error

"""Training steps, loops and loaders of agenet and PyTorch, which train.py times.

Each class is an `Engine` that holds several stages at once: "step" trains on one batch that stays
on the device, "loop" is a whole training, and "load" is the loop without computation. For agenet
the placement of the images, see `config.input.placement`, follows: "loop device".
"""

import dataclasses
import itertools
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agenet.data.decoding import to_square
from agenet.data.records import Records, open_records
from agenet.frameworks.timing import Engine, Figures
from agenet.labels import TASK_CLASSES, UNKNOWN
from scripts.benchmarks.engines import JaxEngine, Torch, Work, compile_counted, filled_state

# Steps per logged row, see `log_every`; few on a CPU, where a step takes long.
STEPS, STEPS_ON_CPU = 20, 2
# Batches that each of PyTorch's worker processes prefetches.
_AHEAD = 2
_ENDLESS = 10**12  # images


@dataclasses.dataclass(frozen=True)
class Training(Work):
    """Training by `config`, whose batch size is set later."""

    config: Any = None  # a RunConfig


class StagedEngine(Engine):
    """An engine that holds several stages at once."""

    def __init__(self) -> None:
        self.calls: dict[str, Callable[[], Any]] = {}

    def prepare(self, stage: str, batch: int) -> Figures:
        figures = super().prepare(stage, batch)
        self.calls[stage] = self.call
        return figures

    def measure(self, stage: str, seconds: float) -> list[float]:
        self.call = self.calls[stage]
        return super().measure(stage, seconds)

    def release(self) -> None:
        super().release()
        self.calls.clear()


class AgenetTraining(StagedEngine, JaxEngine):
    """agenet's training step, and the loop of `agenet train` around it."""

    def __init__(self, work: Training) -> None:
        StagedEngine.__init__(self)
        JaxEngine.__init__(self, work)
        self.experiment: Any = None
        self.loops: dict[str, Loop] = {}

    def build(self, stage: str, batch: int) -> Figures:
        from agenet.distributed.mesh import replicated
        from agenet.runs.batches import create_batches
        from agenet.runs.create import create_experiment

        if self.experiment is None or self.experiment.config.batch_size != batch:
            config = dataclasses.replace(self.work.config, batch_size=batch)
            self.experiment = create_experiment(config, self.mesh)
        experiment = self.experiment
        state = filled_state(experiment.abstract_state(), replicated(self.mesh))
        kind, _, placement = stage.partition(" ")
        if kind == "step":
            return self._build_step(state, batch)
        config = experiment.config
        steps = STEPS if kind == "load" or self.pipelined else STEPS_ON_CPU
        config = dataclasses.replace(
            config, input=dataclasses.replace(config.input, placement=placement)
        )
        plan = dataclasses.replace(experiment.plan, log_every=steps)
        step = experiment.train_step if kind == "loop" else make_idle_step(experiment)
        experiment = dataclasses.replace(experiment, config=config, plan=plan)
        vars(experiment)["train_step"] = step  # The cached property holds the compiled step.
        batches = create_batches(experiment, state.variables, step=0, show_progress=False)
        loop = Loop(experiment, batches, state, steps)
        self.loops[stage] = loop
        self.call = lambda: loop.run(0.0)
        return {}

    def _build_step(self, state: Any, batch: int) -> Figures:
        from agenet.data.decoding import load_faces
        from agenet.data.order import training_batch
        from agenet.data.resident import label_columns
        from agenet.distributed.mesh import batch_sharded

        experiment = self.experiment
        records, size = experiment.records, experiment.config.input.size
        rows = training_batch(experiment.splits.train, batch, seed=0, step=0)
        columns = label_columns(records, rows) | {"image": load_faces(records, rows, size)}
        inputs = self.jax.device_put(columns, batch_sharded(self.mesh))
        _, figures = compile_counted(experiment.train_step, state, inputs)

        def train() -> None:
            nonlocal state
            state, self.result = experiment.train_step(state, inputs)

        self.call = train
        parameters = sum(leaf.size for leaf in self.jax.tree.leaves(state.params))
        return figures | {"parameters": parameters}

    def measure(self, stage: str, seconds: float) -> list[float]:
        if stage in self.loops:
            return self.loops[stage].run(seconds)
        return super().measure(stage, seconds)

    def release(self) -> None:
        super().release()
        self.loops.clear()


def make_idle_step(experiment: Any) -> Any:
    """Returns a training step with the usual inputs and outputs that computes nothing.

    A loop with it does only the host's work: making a batch, copying it to the device, starting a
    program with all arrays of a state, and logging.
    """
    import jax
    import jax.numpy as jnp

    from agenet.distributed.mesh import batch_sharded, replicated

    def idle_step(state: Any, batch: dict[str, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
        _, sums = jax.eval_shape(experiment.train_step, state, batch)
        # The barrier makes JAX pass all arrays through the program, so it waits for the batch.
        state, batch = jax.lax.optimization_barrier((state, batch))
        nothing = 0 * sum(column.ravel()[0].astype(jnp.float32) for column in batch.values())
        zeros = {name: jnp.asarray(nothing, each.dtype) for name, each in sums.items()}
        return state.replace(step=state.step + 1), zeros

    mesh = experiment.mesh
    return jax.jit(
        idle_step,
        in_shardings=(replicated(mesh), batch_sharded(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )


class Loop:
    """A training by agenet's `Trainer` that can be stopped and resumed.

    It takes the place of the trainer's metrics writer, in which it requests to stop, and of its
    checkpoints, in which it keeps the state.
    """

    latest_step = None

    def __init__(self, experiment: Any, batches: Any, state: Any, steps: int) -> None:
        """`steps` is the number of steps between two logged rows."""
        self._experiment, self._batches, self._steps = experiment, batches, steps
        self.state = state

    def run(self, seconds: float) -> list[float]:
        """Trains for about `seconds`, and returns the mean seconds per step of each row.

        The first row is not counted, since it starts without prefetched batches.
        """
        from agenet.distributed.profiler import Profile
        from agenet.runs.loop import Trainer
        from agenet.training.run_record import Progress

        self._times: list[float] = []
        self._seconds = seconds
        trainer = Trainer(
            self._experiment,
            self._batches,
            self,  # type: ignore[arg-type]
            self,
            record={},
            progress=Progress(),
            show_progress=False,
            profile=Profile(Path(), None),
        )
        trainer.run(self.state)
        return self._times[1:]

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        batch = self._experiment.config.batch_size
        self._times.append(batch / scalars["pictures_per_second"])
        counted = self._times[1:]
        if counted and sum(counted) * self._steps >= self._seconds:
            signal.raise_signal(signal.SIGTERM)

    def close(self) -> None: ...

    def save_latest(self, state: Any, run: Mapping[str, Any]) -> None:
        self.state = state


class TorchTraining(StagedEngine, Torch):
    """PyTorch, channels last, bfloat16 by autocast, with agenet's losses and optimizer."""

    def __init__(self, work: Training) -> None:
        import torch

        StagedEngine.__init__(self)
        Torch.__init__(self, work)
        self.config = work.config
        self.counts = [len(TASK_CLASSES[task]) for task in ("age", "gender")]
        # One output layer for both tasks.
        layers = self.module.named_modules()
        *_, name = (name for name, layer in layers if isinstance(layer, torch.nn.Linear))
        head = torch.nn.Linear(self.module.get_submodule(name).in_features, sum(self.counts))
        self.module.set_submodule(name, head.to(self.device))
        dataset = self.config.dataset
        self.faces = Faces(
            open_records(dataset.name, dataset.data_dir), self.config.input.size, work.size
        )
        self.workers = work.cores
        self.loader: Any = None

    def build(self, stage: str, batch: int) -> Figures:
        loader = self.batches(batch)
        if stage == "step":
            loader = itertools.repeat(next(loader))
        else:
            self.loader = loader
        self.call = lambda: self.train(*next(loader))
        return {"parameters": sum(p.numel() for p in self.module.parameters())}

    @cached_property
    def train(self) -> Callable[..., None]:
        """A training step on images uint8 [B, S, S, 3] and int64 [B] of each task."""
        torch, settings = self.torch, self.config.input
        mean, std = (
            torch.tensor(values, device=self.device).reshape(1, 3, 1, 1)
            for values in (settings.mean, settings.std)
        )
        network = self.module

        class Normalised(torch.nn.Module):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, images: Any) -> Any:
                return self.network((images.permute(0, 3, 1, 2).float() - mean) / std)

        module, cast = self.ready(Normalised(), train=True)
        rate = self.config.schedule.learning_rate
        optimizer = torch.optim.Adam(module.parameters(), rate, fused=True)

        def train(images: Any, *labels: Any) -> None:
            optimizer.zero_grad()
            with cast:
                logits = module(images).float().split(self.counts, 1)
            loss: Any = 0.0
            for each, label in zip(logits, labels, strict=True):
                loss += torch.nn.functional.cross_entropy(each, label, ignore_index=UNKNOWN)
            loss.backward()
            optimizer.step()

        return train

    def batches(self, batch: int) -> Iterator[Any]:
        """Yields batches of shuffled images on the device, without end."""
        data = self.torch.utils.data
        # As many epochs as the turns need, one after the other.
        rows = data.RandomSampler(self.faces, num_samples=_ENDLESS)
        loader = data.DataLoader(
            self.faces,
            sampler=data.BatchSampler(rows, batch, drop_last=True),
            batch_size=None,  # The sampler yields rows of whole batches, so each is one array.
            num_workers=self.workers,
            prefetch_factor=_AHEAD,
            pin_memory=self.device == "cuda",
            multiprocessing_context="fork",  # Shares the encoded images in memory.
        )
        for columns in loader:
            yield [column.to(self.device, non_blocking=True) for column in columns]

    def measure(self, stage: str, seconds: float) -> list[float]:
        if stage == "loop":
            # Batches that the workers prepared during others' turns.
            for _ in range(self.workers * _AHEAD):
                next(self.loader)
        return super().measure(stage, seconds)

    def release(self) -> None:
        super().release()
        self.loader = None


class TorchCompiledTraining(TorchTraining):
    """The same with torch.compile, except for loss and optimizer."""

    compiled = True


class Faces:
    """A data set for PyTorch's DataLoader, which decodes, crops and flips in its workers."""

    def __init__(self, records: Records, stored: int, size: int) -> None:
        # All in memory, which is fastest.
        self._encoded = [records.images[row] for row in range(len(records.fold))]
        self._labels = [records.labels[task].astype(np.int64) for task in ("age", "gender")]
        self._stored, self._size = stored, size

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, rows: list[int]) -> tuple[np.ndarray, ...]:
        """Images uint8 [B, S, S, 3] and int64 [B] of each task."""
        cv2.setNumThreads(1)
        size, room = self._size, self._stored - self._size
        images = np.empty((len(rows), size, size, 3), np.uint8)
        for image, row in zip(images, rows, strict=True):
            encoded = np.frombuffer(self._encoded[row], np.uint8)
            decoded: Any = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
            whole = to_square(decoded, self._stored)
            top, left = random.randint(0, room), random.randint(0, room)
            crop = whole[top : top + size, left : left + size]
            image[:] = crop[:, ::-1] if random.random() < 0.5 else crop
        return images, *(labels[rows] for labels in self._labels)


ENGINES: dict[str, type[StagedEngine]] = {
    "agenet": AgenetTraining,
    "torch": TorchTraining,
    "torch_compiled": TorchCompiledTraining,
}

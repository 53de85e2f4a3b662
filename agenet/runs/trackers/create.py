"""Starts the trackers that a config names."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from agenet.runs.trackers.background import BackgroundTracker, Trackers
from agenet.runs.trackers.mlflow import MlflowTracker
from agenet.runs.trackers.tensorboard import TensorBoardTracker
from agenet.runs.trackers.tracker import TrackedRun, Tracker
from agenet.runs.trackers.wandb import WandbTracker

# Each imports its library when it is opened, in its own thread.
_TRACKERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}


def start_trackers(names: Sequence[str], run: TrackedRun) -> Trackers:
    """Starts trackers; nothing waits until they are open.

    Args:
        names: of `agenet.runs.config.RunConfig.trackers`.
        run: what they log.
    """
    return Trackers([BackgroundTracker(name, partial(_TRACKERS[name], run)) for name in names])

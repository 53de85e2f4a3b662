"""Registers the network "tiny" in programs that tests start, and in the server of their runs."""

from agenet.models import MODELS
from agenet.runs import child_process
from tests.conftest import TinyNet

MODELS["tiny"] = TinyNet
child_process.PRELOAD = "tests.runs.tiny_network"

"""Imports what all kinds need, once, in the server that processes are forked from."""

import gc

import tensorflow_datasets  # noqa: F401

import agenet.cli.export
import agenet.cli.predict
import agenet.cli.prepare
import agenet.inference.export
import agenet.inference.predictor
import agenet.runs.preload  # noqa: F401
from agenet.models import MODELS
from tests import tiny

MODELS["tiny"] = tiny.TinyNet  # for the runs of sweeps, which are forked from the same server
gc.freeze()

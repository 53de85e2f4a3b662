"""Losses, optimizers, train state and train steps; pure functions that know no config file."""

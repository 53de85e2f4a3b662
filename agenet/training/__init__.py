"""Losses, optimizers, train state, train and evaluation steps, and checkpoints."""

"""Predicts age and gender with a trained network."""

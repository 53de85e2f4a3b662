"""Prepared data sets: their splits, their pictures in memory, and what is done to a picture."""

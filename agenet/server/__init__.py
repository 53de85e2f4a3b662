"""Serves the predictor over HTTP."""

"""Experiment trackers: a run's scalars, config, lineage and report for TensorBoard, MLflow, W&B."""

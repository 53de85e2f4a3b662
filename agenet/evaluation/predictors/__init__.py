"""Evaluation of any predictors on labelled faces: metrics, differences, a page to browse."""

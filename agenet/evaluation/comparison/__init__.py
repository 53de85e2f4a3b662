"""Compares finished runs: reads their folders, and composes one page."""

"""Faces of a user's own: a data set with any name, from a folder and a table."""

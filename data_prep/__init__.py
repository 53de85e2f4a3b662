"""Builders that turn data sets as their authors release them into prepared ones."""

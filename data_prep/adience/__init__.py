"""Adience: unfiltered faces with age group and gender."""

"""A release of drawn faces in the layout of Adience, for the quickstart and for tests."""

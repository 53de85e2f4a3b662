"""APPA-REAL: photographs with the real age of the person and the age that people guessed."""

"""TFDS builders that prepare the data sets released by their authors."""

"""Prepared data sets: records, splits, order of batches, decoding, and augmentation."""

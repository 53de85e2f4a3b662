"""Pre-trained weights: public files, readers, name maps and strict loading."""

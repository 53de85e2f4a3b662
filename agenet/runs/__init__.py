"""From a config to a finished run, and series of runs."""

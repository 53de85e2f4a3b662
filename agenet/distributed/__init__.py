"""Devices and processes: mesh and sharding, start-up, compilation cache, profiler."""

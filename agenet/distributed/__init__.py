"""Devices and processes of a training: mesh, process start-up, compilation cache, profiler."""

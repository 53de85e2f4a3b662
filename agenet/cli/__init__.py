"""The command line: `agenet COMMAND`, one module for each command."""

from agenet.cli.app import main

__all__ = ["main"]

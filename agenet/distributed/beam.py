"""Reads the options of an Apache Beam pipeline."""

import importlib
import logging
import shlex
from typing import Any

from agenet.errors import UserError, needs_extra


def parse_beam_options(options: str) -> Any:
    """Beam's object for pipeline options such as "--runner=DirectRunner".

    Raises:
        UserError: Beam is not installed, or does not know an option or the runner.
    """
    # What Beam itself has to say of packages that it could use; errors are shown.
    logging.getLogger().addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        beam = importlib.import_module("apache_beam")
    except ImportError as error:
        # In an environment of its own: Beam takes an older protobuf than the rest.
        raise needs_extra("beam", "--beam_options", error) from None
    try:
        parsed = beam.options.pipeline_options.PipelineOptions(shlex.split(options))
        if runner := parsed.view_as(beam.options.pipeline_options.StandardOptions).runner:
            beam.runners.create_runner(runner)
    except (ImportError, ValueError) as error:
        raise UserError(f"--beam_options {options!r}: {str(error).splitlines()[0]}") from None
    return parsed

"""Tests a run's best state again and rewrites its report, from the checkpoint alone.

agenet evaluate --workdir=RUN [--data_dir=DIR] [--test_views=N]
"""

from collections.abc import Sequence
from pathlib import Path

from agenet.errors import ArgumentParser, one_line_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, then evaluates.

    Raises:
        UserError: what is there cannot be evaluated.
    """
    parser = ArgumentParser(
        prog="agenet evaluate",
        description="Tests a run's best state again and rewrites its report, from the checkpoint "
        "alone.",
    )
    parser.add_argument("--workdir", metavar="DIR", type=Path, required=True, help="of the run")
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        help="folder of the prepared data sets, if it is not the one of the training",
    )
    parser.add_argument(
        "--test_views",
        metavar="N",
        type=int,
        help="views of each face to take the mean of, as config.test_views: 1, 2 or 4",
    )
    args = parser.parse_args(arguments)
    # Imported here, not above: help and mistyped flags must not wait for JAX.
    from agenet.distributed.compilation_cache import enable_compilation_cache
    from agenet.runs.evaluator import report_again
    from agenet.runs.logging import log_to

    with log_to():
        enable_compilation_cache()
        report_again(args.workdir, args.data_dir, args.test_views)


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Writes a network's predictions for a data set to a file that `distill.teacher` takes.

python scripts/write_teacher_predictions.py --teacher=RUN [--data_set=adience/faces] teacher.npz

Give the data set as the run that learns has it: `--data_set`, `--extra` and `--labels` are its
dataset.name, dataset.extra and dataset.labels. Every image is predicted; a run looks up those that
it trains on.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from agenet.errors import ArgumentParser, one_line_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Predicts and writes.

    Raises:
        UserError: the network, the data set or the file does not exist.
    """
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the file, which ends in .npz")
    parser.add_argument(
        "--teacher", required=True, help="the --workdir of a run, a file of weights, or default"
    )
    parser.add_argument("--data_set", default="adience/faces", help="DATA_SET/CONFIG, prepared")
    parser.add_argument("--extra", default="", help="further data sets, separated by commas")
    parser.add_argument("--data_dir", default="", help="where they are prepared (default: TFDS's)")
    parser.add_argument(
        "--labels", default="official", choices=("official", "extended"), help="of Adience's ages"
    )
    args = parser.parse_args(arguments)

    from agenet.runs.config import parse_config
    from agenet.runs.create import open_data_set
    from agenet.runs.teacher_file import write_predictions
    from configs import default

    dataset = dataclasses.replace(
        parse_config(default.get_config().to_dict()).dataset,
        name=args.data_set,
        extra=args.extra,
        data_dir=args.data_dir,
        labels=args.labels,
    )
    records = open_data_set(dataset)
    write_predictions(args.teacher, records, args.output)
    print(f"{args.output}: predictions for {len(records.fold):,} images of {records.name}")


if __name__ == "__main__":
    with one_line_errors():
        main()

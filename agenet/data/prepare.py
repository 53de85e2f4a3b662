"""Prepares a data set for training: agenet prepare adience --manual_dir=FOLDER."""

import argparse
import contextlib
import difflib
import errno
import importlib
import io
import os
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.files import SHIPPED, make_shipped_importable


def parse_arguments(arguments: Sequence[str] | None, names: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(description="Prepares a data set for training.")
    parser.add_argument("name", help=f"the data set: {', '.join(names)}")
    parser.add_argument(
        "--manual_dir",
        type=Path,
        help="folder with the files that you obtained (default: DATA_DIR/downloads/manual; "
        "drawn data sets: a temporary folder)",
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        help="folder of the prepared data sets (default: TFDS_DATA_DIR or ~/tensorflow_datasets)",
    )
    parser.add_argument("--config", default="", help="the builder config (default: the first one)")
    parser.add_argument(
        "--overwrite", action="store_true", help="prepare it again where it is prepared already"
    )
    parser.add_argument(
        "--beam_options",
        metavar="OPTIONS",
        help='prepare on Apache Beam with these pipeline options, such as "--runner=DirectRunner '
        '--direct_num_workers=4"; for data sets too large for one machine',
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares one data set and prints what was done.

    Raises:
        UserError: for everything that the user can mend; nothing half-written is left behind.
    """
    make_shipped_importable()
    names = sorted(path.parent.name for path in SHIPPED.glob("data_prep/*/*_dataset_builder.py"))
    args = parse_arguments(arguments, names)
    if args.name not in names:
        raise UserError(f'data set "{args.name}" is not known{_nearest(args.name, names)}')
    builder_cls = _load_builder(args.name)
    configs = list(builder_cls.builder_configs)
    if args.config and args.config not in configs:
        raise UserError(
            f'{args.name} has no config "{args.config}"{_nearest(args.config, configs)}'
        )
    options = {
        "config": args.config or None,
        "data_dir": args.data_dir.expanduser() if args.data_dir else None,
    }
    builder = builder_cls(**options)
    data_path = Path(builder.data_path)
    beam_options = _beam_options(args.beam_options, builder)
    if builder.is_prepared() and not args.overwrite:
        print(f"{builder.info.full_name} is already prepared: {data_path} (--overwrite redoes it)")
    else:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            if args.manual_dir:
                manual_dir = args.manual_dir.expanduser()
            elif builder.GENERATES_RELEASE:
                manual_dir = Path(scratch) / "manual"
            else:
                manual_dir = Path(builder.data_dir_root) / "downloads" / "manual"
            builder.ensure_release(manual_dir)
            with _nothing_half_written(data_path):
                builder = builder_cls(**options)  # anew: it may know what is now replaced
                _prepare(builder, manual_dir, scratch, beam_options)
        print(f"{builder.info.full_name} prepared in {time.monotonic() - start:.0f} s: {data_path}")
    _print_summary(builder)
    where = f" --config.dataset.data_dir={args.data_dir}" if args.data_dir else ""
    print(
        f"next: python -m agenet.main --config=configs/FILE.py --workdir=FOLDER "
        f"--config.dataset.name={args.name}/{builder.builder_config.name}{where}"
    )


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f": did you mean {near[0]}? There are {', '.join(names)}"


def _load_builder(name: str) -> Any:
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets as tfds
        from absl import logging
    except ImportError as error:
        raise UserError(
            f'preparing data needs the "train" extra: pip install "agenet[train]" ({error})'
        ) from None
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()  # the builders have bars of their own, quiet in a log file
    return importlib.import_module(f"data_prep.{name}.{name}_dataset_builder").Builder


def _beam_options(options: str | None, builder: Any) -> Any:
    """Beam's own object for the pipeline options; None prepares without Beam."""
    if options is None:
        return None
    if not builder.SUPPORTS_BEAM:
        raise UserError(f"{builder.name} does not run on Beam: leave out --beam_options")
    try:
        beam = importlib.import_module("apache_beam")
    except ImportError as error:
        raise UserError(
            '--beam_options needs Apache Beam: pip install "agenet[train,beam]", in an environment '
            f"of its own ({error})"
        ) from None
    try:
        parsed = beam.options.pipeline_options.PipelineOptions(shlex.split(options))
        if runner := parsed.view_as(beam.options.pipeline_options.StandardOptions).runner:
            beam.runners.create_runner(runner)
    except (ImportError, ValueError) as error:
        raise UserError(f"--beam_options {options!r}: {str(error).splitlines()[0]}") from None
    return parsed


def _prepare(builder: Any, manual_dir: Path, download_dir: str, beam_options: Any) -> None:
    import tensorflow_datasets as tfds

    builder.beam = beam_options is not None
    try:
        # TFDS announces a download, which this is not.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_dir=download_dir,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=manual_dir, beam_options=beam_options
                ),
            )
    except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise UserError(
            f"the disk is full: free some space for {builder.data_path}, "
            "or name a folder on another disk with --data_dir"
        ) from None


@contextlib.contextmanager
def _nothing_half_written(data_path: Path) -> Iterator[None]:
    """Leaves `data_path` and the folders above it as they were if the block fails."""
    before = next(folder for folder in data_path.parents if folder.exists())
    replaced = data_path.with_name(f"replaced.{data_path.name}")
    try:
        data_path.parent.mkdir(parents=True, exist_ok=True)
        if data_path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            data_path.rename(replaced)
    except OSError as error:
        raise UserError(
            f"cannot write to {data_path.parent} ({error.strerror}): "
            "name another folder with --data_dir"
        ) from None
    try:
        yield
    except BaseException:
        if replaced.exists():
            replaced.rename(data_path)
        for folder in data_path.parents:
            if folder == before:
                break
            if [path.name for path in folder.iterdir()] == [".config"]:
                shutil.rmtree(folder / ".config")  # TFDS's note of the default config
            with contextlib.suppress(OSError):  # another config is prepared beside this one
                folder.rmdir()
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _print_summary(builder: Any) -> None:
    for split, info in builder.info.splits.items():
        print(f"  {split}: {info.num_examples:,} pictures")
    metadata = builder.info.metadata or {}
    print(f"  together: {builder.info.splits.total_num_examples:,} pictures", end="")
    print(f", {builder.info.dataset_size.real / 2**20:,.0f} MiB")
    for line in metadata.get("summary", ()):
        print(f"  {line}")
    if notice := metadata.get("notice"):
        print(notice)


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    with one_line_errors():
        main()

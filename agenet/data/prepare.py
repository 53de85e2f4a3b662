"""Prepares a data set for training through its TFDS builder in data_prep/."""

import contextlib
import errno
import importlib
import io
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agenet.errors import UserError, did_you_mean, needs_extra
from agenet.files import SHIPPED, make_shipped_importable

# A config to train each data set with; for others the one whose weights need no download.
_CONFIGS = {
    "drawn_faces": "quickstart",
    "fairface": "effnet_fairface",
    "imdb_wiki": "effnet_imdb_wiki",
}
_OTHER_CONFIG = "levi_hassner_adience"


def data_set_names() -> list[str]:
    """The data sets that have a builder."""
    return sorted(path.parent.name for path in SHIPPED.glob("data_prep/*/*_dataset_builder.py"))


def prepare(
    name: str,
    manual_dir: Path | None = None,
    data_dir: Path | None = None,
    config: str = "",
    overwrite: bool = False,
    beam_options: str | None = None,
) -> None:
    """Prepares one data set and prints a summary and the command that trains on it.

    Args:
        name: one of `data_set_names()`.
        manual_dir: folder with the files that the user obtained from the data set's authors;
            DATA_DIR/downloads/manual by default, a temporary folder for drawn data sets.
        data_dir: folder of the prepared data sets; that of TFDS by default.
        config: the builder config; the first one by default.
        overwrite: prepare it again if it is prepared already.
        beam_options: prepare on Apache Beam with these pipeline options.

    Raises:
        UserError: a mistake that the user can correct; no half-written data is left behind.
    """
    make_shipped_importable()
    names = data_set_names()
    if name not in names:
        raise UserError(f'data set "{name}" is not known{_nearest(name, names)}')
    builder_cls = _load_builder(name)
    configs = list(builder_cls.builder_configs)
    if config and config not in configs:
        raise UserError(f'{name} has no config "{config}"{_nearest(config, configs)}')
    options = {
        "config": config or None,
        "data_dir": data_dir.expanduser() if data_dir else None,
    }
    builder = builder_cls(**options)
    data_path = Path(builder.data_path)
    beam = _beam_options(beam_options, builder)
    if builder.is_prepared() and not overwrite:
        print(
            f"{builder.info.full_name} is already prepared: {data_path} (--overwrite prepares it "
            "again)"
        )
    else:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            if manual_dir:
                manual_dir = manual_dir.expanduser()
            elif builder.GENERATES_RELEASE:
                manual_dir = Path(scratch) / "manual"
            else:
                manual_dir = Path(builder.data_dir_root) / "downloads" / "manual"
            builder.ensure_release(manual_dir)
            with _nothing_half_written(data_path):
                builder = builder_cls(**options)  # The first one may know the old data.
                _prepare(builder, manual_dir, scratch, beam)
        print(f"{builder.info.full_name} prepared in {time.monotonic() - start:.0f} s: {data_path}")
    _print_summary(builder)
    if command := _training_command(builder, data_dir):
        print(f"next: {command}")


def _training_command(builder: Any, data_dir: Path | None) -> str:
    """The command that trains on the data set; "" if it has a single split, to test on."""
    if len(builder.info.splits) < 2:
        return ""
    config = _CONFIGS.get(builder.name, _OTHER_CONFIG)
    command = ["agenet", "train", f"--config={config}", f"--workdir=runs/{builder.name}"]
    name = f"{builder.name}/{builder.builder_config.name}"
    if name != importlib.import_module(f"configs.{config}").get_config().dataset.name:
        command.append(f"--config.dataset.name={name}")
    if data_dir:
        command.append(f"--config.dataset.data_dir={data_dir}")
    return shlex.join(command)


def _nearest(name: str, names: list[str]) -> str:
    return f"{did_you_mean(name, names)} There are {', '.join(names)}"


def _load_builder(name: str) -> Any:
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets as tfds
        from absl import logging
    except ImportError as error:
        raise needs_extra("train", "preparing data", error) from None
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()  # The builders have progress bars that stay out of log files.
    return importlib.import_module(f"data_prep.{name}.{name}_dataset_builder").Builder


def _beam_options(options: str | None, builder: Any) -> Any:
    """Beam's object for the pipeline options; None prepares without Beam."""
    if options is None:
        return None
    if not builder.SUPPORTS_BEAM:
        raise UserError(f"{builder.name} does not run on Beam: leave out --beam_options")
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


def _prepare(builder: Any, manual_dir: Path, download_dir: str, beam_options: Any) -> None:
    import tensorflow_datasets as tfds

    builder.beam = beam_options is not None
    try:
        # TFDS announces a download, though nothing is downloaded.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_dir=download_dir,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=manual_dir, beam_options=beam_options
                ),
            )
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError.
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
                shutil.rmtree(folder / ".config")  # In it TFDS names the default config.
            with contextlib.suppress(OSError):  # It holds another prepared config.
                folder.rmdir()
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _print_summary(builder: Any) -> None:
    for split, info in builder.info.splits.items():
        print(f"  {split}: {info.num_examples:,} images")
    metadata = builder.info.metadata or {}
    print(f"  total: {builder.info.splits.total_num_examples:,} images", end="")
    print(f", {builder.info.dataset_size.real / 2**20:,.0f} MiB")
    for line in metadata.get("summary", ()):
        print(f"  {line}")
    if notice := metadata.get("notice"):
        print(notice)

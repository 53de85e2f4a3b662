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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agenet.distributed.beam import parse_beam_options
from agenet.errors import UserError, did_you_mean, needs_extra
from agenet.files import SHIPPED, expand_home, is_address, make_shipped_importable
from agenet.places.stores import parse_address
from agenet.places.working import open_data_dir

if TYPE_CHECKING:
    from agenet.data.description import Description

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
        data_dir: folder of the prepared data sets, or an address; that of TFDS by default.
        config: the builder config; the first one by default.
        overwrite: prepare it again if it is prepared already.
        beam_options: prepare on Apache Beam with these pipeline options.

    Raises:
        UserError: a mistake that the user can correct; no half-written data is left behind.
    """
    # Imported here because `agenet prepare --help` lists the data sets.
    from agenet.data.records import default_data_dir

    make_shipped_importable()
    names = data_set_names()
    if name not in names:
        raise UserError(f'data set "{name}" is not known{_nearest(name, names)}')
    builder_cls = _load_builder(name)
    configs = list(builder_cls.builder_configs)
    if config and config not in configs:
        raise UserError(f'{name} has no config "{config}"{_nearest(config, configs)}')
    config = config or configs[0]
    beam = _beam_options(beam_options, builder_cls)
    if data_dir and is_address(data_dir) and not (manual_dir or builder_cls.GENERATES_RELEASE):
        raise UserError(
            "with an address as --data_dir, --manual_dir=FOLDER_OF_THE_RELEASE is needed"
        )
    full_name = f"{name}/{config}/{builder_cls.VERSION}"
    with open_data_dir(data_dir or default_data_dir(), f"{name}/{config}") as root:
        if manual_dir or not builder_cls.GENERATES_RELEASE:
            manual_dir = expand_home(manual_dir or root / "downloads" / "manual")
        path = root / full_name
        shared = importlib.import_module("data_prep.exclusive")
        # Where nothing is to be written, the folder may be read-only.
        idle = _is_prepared(path) and not overwrite and not shared.needs_repair(path.parent)
        with contextlib.nullcontext() if idle else shared.exclusively(path.parent):
            if not already_prepared(path, overwrite):
                start = time.monotonic()
                _prepare(builder_cls, config, path, manual_dir, beam)
                print(f"{full_name} prepared in {time.monotonic() - start:.0f} s: {path}")
        show_prepared(path, f"{name}/{config}", data_dir)


def already_prepared(path: Path, overwrite: bool) -> bool:
    """Whether a version of a data set is prepared, and is not to be prepared again; says so.

    Raises:
        UserError: something else is there.
    """
    if overwrite or not path.exists():
        return False
    if not _is_prepared(path):
        raise UserError(
            f"{path} exists, but holds no prepared data set: add --overwrite to replace it"
        )
    full_name = "/".join(path.parts[-3:])
    print(f"{full_name} is already prepared: {path} (--overwrite prepares it again)")
    return True


def show_prepared(
    path: Path, data_set: str, data_dir: Path | None, tasks: Sequence[str] = ("age", "gender")
) -> None:
    """Prints a summary of a prepared data set and the command that trains on it.

    Args:
        path: of the version.
        data_set: its name, such as "adience/faces".
        data_dir: as the user gave it.
        tasks: that can be learnt from it.

    Raises:
        UserError: it is damaged.
    """
    from agenet.data.description import read_description

    try:
        description = read_description(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): add --overwrite to replace it") from error
    _print_summary(description)
    name, _, config = data_set.partition("/")
    if command := _training_command(name, config, description.shards, data_dir, tasks):
        print(f"next: {command}")


def _is_prepared(path: Path) -> bool:
    return (path / "dataset_info.json").is_file()


def _training_command(
    name: str,
    builder_config: str,
    splits: Iterable[str],
    data_dir: Path | None,
    tasks: Sequence[str] = ("age", "gender"),
) -> str:
    """The command that trains on the data set; "" if it has a single split, to test on."""
    if len(list(splits)) < 2:
        return ""
    config = _CONFIGS.get(name, _OTHER_CONFIG)
    command = ["agenet", "train", f"--config={config}", f"--workdir=runs/{name}"]
    data_set = f"{name}/{builder_config}"
    if data_set != importlib.import_module(f"configs.{config}").get_config().dataset.name:
        command.append(f"--config.dataset.name={data_set}")
    if data_dir:
        where = parse_address(data_dir) if is_address(data_dir) else data_dir
        command.append(f"--config.dataset.data_dir={where}")
    if len(tasks) == 1:
        command.append(f"--config.tasks={tasks[0]}")
    return shlex.join(command)


def _nearest(name: str, names: list[str]) -> str:
    return f"{did_you_mean(name, names)} There are {', '.join(names)}"


def _load_builder(name: str) -> Any:
    require_builders()
    return importlib.import_module(f"data_prep.{name}.{name}_dataset_builder").Builder


def require_builders() -> None:
    """Imports what builders need, and silences it.

    Raises:
        UserError: it is not installed.
    """
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets as tfds
        from absl import logging
    except ImportError as error:
        raise needs_extra("train", "preparing data", error) from None
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()  # The builders have progress bars that stay out of log files.


def _beam_options(options: str | None, builder_cls: Any) -> Any:
    """Beam's object for the pipeline options; None prepares without Beam."""
    if options is None:
        return None
    if not builder_cls.SUPPORTS_BEAM:
        raise UserError(f"{builder_cls.name} does not run on Beam: leave out --beam_options")
    return parse_beam_options(options)


def _prepare(
    builder_cls: Any, config: str, path: Path, manual_dir: Path | None, beam_options: Any
) -> None:
    """Prepares a data set beside `path`, and puts it there once it is complete."""
    import tensorflow_datasets as tfds

    shared = importlib.import_module("data_prep.exclusive")
    unfinished = Path(tempfile.mkdtemp(prefix=shared.UNFINISHED, dir=path.parent))
    try:
        builder = builder_cls(config=config, data_dir=unfinished)
        builder.beam = beam_options is not None
        # TFDS announces a download, though nothing is downloaded.
        with full_disk_explained(path), contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    manual_dir=manual_dir, beam_options=beam_options
                ),
            )
        shared.replace(path, Path(builder.data_path))
        # In it TFDS names the default config.
        with contextlib.suppress(OSError):
            (unfinished / builder.name / ".config").rename(path.parents[1] / ".config")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turns the errors of a full disk into one that names the data set `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError.
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise UserError(
            f"the disk is full: free some space for {path}, or name a folder on another disk with "
            "--data_dir"
        ) from None


def _print_summary(description: "Description") -> None:
    counts = {split: description.count(split) for split in description.shards}
    for split, count in counts.items():
        print(f"  {split}: {count:,} images")
    print(f"  total: {sum(counts.values()):,} images, {description.size / 2**20:,.0f} MiB")
    for line in description.summary:
        print(f"  {line}")
    if description.notice:
        print(description.notice)

"""Options and tables that the benchmarks share."""

import argparse
import contextlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from agenet.errors import UserError
from agenet.files import write_file
from agenet.frameworks.timing import Figures
from scripts.benchmarks.engines import Work

DTYPES = ("float32", "bfloat16")


def add_turn_options(parser: argparse.ArgumentParser, *, rounds: int, seconds: float) -> None:
    """Adds the options of benchmarks with turns."""
    add = parser.add_argument
    add("--rounds", type=int, default=rounds, help=f"turns of each contestant (default: {rounds})")
    add(
        "--seconds",
        type=float,
        default=seconds,
        help=f"length of a turn, at least one call (default: {seconds:g})",
    )
    add(
        "--limit",
        type=float,
        default=300.0,
        help="seconds to wait for an answer (default: 300)",
    )
    add("--json", type=Path, help="file for all figures")


def add_network_options(parser: argparse.ArgumentParser, models: str) -> None:
    """Adds the options of the benchmarks of networks; `models` is the default list."""
    add = parser.add_argument
    add("--models", default=models, help=f'list, or "all" (default: {models})')
    add("--batch_size", type=int, help="largest batch (default: 16 on a CPU, else 256)")
    add("--size", type=int, help="side of the input (default: the network's own)")
    add("--dtype", choices=DTYPES, help="default: float32 on a CPU, else bfloat16")


def check_names(args: argparse.Namespace, option: str, known: Sequence[str]) -> None:
    """Splits a comma-separated option, if it is given.

    Raises:
        UserError: a name is not a known one.
    """
    if (text := getattr(args, option)) is None:
        return
    setattr(args, option, split_names(text))
    for name in getattr(args, option):
        if name not in known:
            raise UserError(f"--{option}: {name!r} is not one of {', '.join(known)}")


def check_options(args: argparse.Namespace, **least: int) -> None:
    """Makes a list of `models`, if there are any.

    Raises:
        UserError: an option is smaller than the `least` that goes by its name, a network is not
            known, or there is no folder for `json`.
    """
    for option, minimum in least.items():
        value = getattr(args, option)
        if value is not None and value < minimum:
            raise UserError(f"--{option}={value} must be at least {minimum}")
    if args.json and not args.json.resolve().parent.is_dir():
        raise UserError(f"--json: there is no folder {args.json.resolve().parent}")
    if "models" in args:
        from agenet.models import MODELS

        args.models = list(MODELS) if args.models == "all" else split_names(args.models)
        for name in args.models:
            input_size(name)  # raises for an unknown one


def work_on(device: Figures, dtype: str | None, cores: int) -> Work:
    """The task on the device that `Limits` describes, with its default precision."""
    return Work(
        # Every accelerator but a TPU has a backend in PyTorch that goes by the name of cuda.
        platform={"cpu": "cpu", "tpu": "tpu"}.get(device["platform"], "gpu"),
        dtype=dtype or ("float32" if device["platform"] == "cpu" else "bfloat16"),
        cores=cores,
    )


def split_names(text: str) -> list[str]:
    """The names in "one, another"."""
    return [name for part in text.split(",") if (name := part.strip())]


def input_size(model: str) -> int:
    """Default side of a network's input in pixels; raises `UserError` for an unknown one."""
    from agenet.models import create_model

    return int(create_model(model, {"imagenet": 1}).backbone.input_size)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def write_json(args: argparse.Namespace, result: Figures) -> None:
    if args.json:
        write_file(args.json, json.dumps(result, indent=1).encode())


def print_machine(result: Figures, what: str) -> None:
    """Prints the machine, settings (`what`), versions and load."""
    machine = result["machine"]
    found = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    print(f"{machine['devices']}; {machine['processor']}; {what}; {found}")
    malloc = f"GLIBC_TUNABLES={result['malloc']}; " if "malloc" in result else ""
    print(f"{malloc}other programs' load {result['load']:.1f}")


def print_table(header: Sequence[str], rows: Mapping[str, Sequence[str]], first: str = "") -> None:
    """Prints a row of cells for each name, which is in the first column."""
    print(f"| {first + ' ' if first else ''}| {' | '.join(header)} |")
    print("|---|" + "---:|" * len(header))
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def print_roofline(rows: Mapping[str, Figures]) -> None:
    """Prints XLA's counts, and how close the device's limits are."""
    cells = {}
    for name, ours in rows.items():
        if "fraction" not in ours:
            continue
        seconds = ours["median"]
        cells[name] = [
            f"{ours['flops'] / 1e9:.3g}",
            f"{ours['bytes'] / 1e9:.3g}",
            f"{ours['flops'] / seconds / 1e9:,.0f} of {ours['peak_flops'] / 1e9:,.0f}",
            f"{ours['bytes'] / seconds / 1e9:,.1f} of {ours['bandwidth'] / 1e9:,.1f}",
            f"{ours['fraction']:.0%} of {ours['bound']}",
            cell(ours, "compile_seconds"),
            cell(ours, "program_bytes", 1e-9),
        ]
    header = ["GFLOP", "GB moved", "GFLOP/s", "GB/s", "reached", "compiling, s", "program, GB"]
    print()
    print_table(header, cells, "agenet")


def print_problems(stages: Mapping[str, Mapping[str, Figures]]) -> None:
    """Prints a line for each contestant that failed, or that disturbed the others."""
    print()
    lines = []
    for stage, figures in stages.items():
        for name, found in figures.items():
            if "error" in found:
                lines.append(f"- {name}, {stage}: failed: {found['error']}")
            if found.get("idle", 0.0) > 0.05:
                lines.append(f"- {name}, {stage}: busy for {found['idle']:.0%} of others' turns")
    for line in dict.fromkeys(lines):
        print(line)


def cell(figures: Figures, key: str, scale: float = 1.0) -> str:
    """A figure with three significant digits, or a whole number; "-" where there is none."""
    value = figures.get(key, 0.0) * scale
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value else "-"


def rate_cell(figures: Figures, batch: int) -> str:
    """Images per second of calls of this batch."""
    return cell({"rate": batch / figures.get("median", float("inf"))}, "rate")

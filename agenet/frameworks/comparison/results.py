"""Reads and writes the results file of a comparison, with the settings of every measurement."""

import copy
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agenet.errors import UserError
from agenet.files import write_file
from agenet.frameworks.timing import Figures

RESULTS = "results.json"
# Settings that may change when a comparison resumes: they only add results.
_MORE = {"seeds", "parts", "frameworks", "variants", "limit", "rounds", "seconds"}
# For each kind of part, where frameworks write arrays.
_FILES = {"agreement": ("agreement", ".safetensors"), "results": ("answers", ".npy")}
# What is kept of a variant whose measurement is not finished.
_ROUNDS = ("training", "training_peak_bytes", "inference")
_ENVIRONMENT = ("OMP_NUM_THREADS", "GLIBC_TUNABLES", "XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS")


class Results:
    """results.json, saved after each part."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Opens the file in a folder, or starts one.

        Raises:
            UserError: the folder holds a comparison with other settings.
        """
        self.folder, self.path, self.machine = folder, folder / RESULTS, describe_machine()
        fresh = {"settings": settings, "machine": self.machine, "parts": {}}
        self.content: dict[str, Any] = read_results(folder) if self.path.is_file() else fresh
        old = self.content["settings"]
        other = [k for k, v in settings.items() if k not in _MORE and old.get(k) != v]
        if other:
            name = other[0]
            raise UserError(
                f"{folder} holds a comparison with --{name}={old.get(name)}, not {settings[name]}: "
                "name another --out"
            )
        # Results of earlier runs stay.
        both = {
            name: [*dict.fromkeys([*old.get(name, []), *settings.get(name, [])])]
            for name in ("parts", "frameworks", "variants")
        }
        seeds = max(old.get("seeds", 0), settings.get("seeds", 0))
        self.content["settings"] = settings | both | {"seeds": seeds}

    def has(self, key: str) -> bool:
        """Whether a part has a result; failed parts are run again."""
        part = self.content["parts"].get(key)
        return part is not None and "error" not in part

    def file_of(self, key: str) -> Path:
        """The file that a framework writes for a part, in a folder that exists."""
        kind, _, name = key.partition("/")
        folder, suffix = _FILES[kind]
        (self.folder / folder).mkdir(exist_ok=True)
        return self.folder / folder / f"{name.replace('/', '-')}{suffix}"

    def add(self, key: str, settings: Mapping[str, Any], result: Figures, started: float) -> None:
        self.content["parts"][key] = {**settings, **result, **self.record(started)}
        self.content.get("unfinished", {}).pop(key, None)
        self.save()

    def keep_rounds(self, key: str, variants: Mapping[str, Figures], seconds: float) -> None:
        """Saves what is measured so far of the variants of a part, in rounds of so many seconds."""
        kept = {
            name: {figure: figures[figure] for figure in _ROUNDS if figure in figures}
            for name, figures in variants.items()
            if "error" not in figures
        }
        conditions = {"seconds": seconds, "machine": self.machine}
        self.content.setdefault("unfinished", {})[key] = conditions | {"variants": kept}
        self.save()

    def kept_rounds(self, key: str, seconds: float) -> dict[str, Figures]:
        """What `keep_rounds` saved before an interruption, by variant, if it was measured alike."""
        kept = self.content.get("unfinished", {}).get(key, {})
        if (kept.get("seconds"), kept.get("machine")) != (seconds, self.machine):
            return {}
        return copy.deepcopy(kept["variants"])

    def record(self, started: float) -> Figures:
        """When, where and under which conditions a part was measured."""
        return {
            "took": time.time() - started,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "load": round(os.getloadavg()[0], 1),
            "environment": {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ},
            "machine": self.machine,
        }

    def save(self) -> None:
        write_file(self.path, (json.dumps(self.content, indent=1) + "\n").encode())


def read_results(folder: Path) -> dict[str, Any]:
    """Raises `UserError` if results.json is damaged."""
    path = folder / RESULTS
    try:
        content = json.loads(path.read_text())
        if not all(isinstance(content[k], dict) for k in ("settings", "machine", "parts")):
            raise ValueError("a section is no object")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): name another --out") from error
    return dict(content)


def describe_machine() -> dict[str, Any]:
    """The machine that measures."""
    from agenet.distributed.cores import available_cores
    from agenet.runs.machine import processor_name

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": processor_name(),
        "cores": available_cores(),
        "memory_bytes": pages,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "agenet": importlib.import_module("agenet").__version__,
    }


def log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)

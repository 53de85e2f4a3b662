"""Logs a run to Weights & Biases: online where the user has a key, else into the work directory.

`wandb sync WORKDIR/wandb/offline-run-*` uploads what was logged offline. What W&B collects of its
own, such as the machine's name, the code and the packages, is switched off.
"""

import json
import logging
import netrc
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agenet.runs.trackers.tracker import TrackedRun, report_files
from agenet.weights.connection import is_offline

log = logging.getLogger(__name__)

NAME = "wandb"
_SERVER = "https://api.wandb.ai"
_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


class WandbTracker:
    """One run in the project "agenet", or the one that `WANDB_PROJECT` names."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode = choose_mode()
        self._image: Any = wandb.Image
        self._workdir = run.workdir
        run_id = run.read_id(NAME).get("run_id") or secrets.token_hex(4)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "agenet",
            name=os.environ.get("WANDB_NAME") or run.name,
            id=run_id,
            resume="allow",
            dir=str(run.workdir),
            config={**run.config, "lineage": _short(run.lineage)},
            settings=wandb.Settings(
                mode=mode,
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                init_timeout=30,
                finish_timeout=60,
                host="-",  # Else it is the machine's name.
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        run.keep_id(NAME, run_id=run_id)
        # W&B's own steps only grow, so that a resumed run could not draw its curves on.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        lineage = Path(self._run.dir, "lineage.json")
        lineage.write_text(json.dumps(run.lineage, indent=2) + "\n", encoding="utf-8")
        self._run.save(str(lineage), base_path=self._run.dir, policy="now")

    def log_scalars(self, step: int, time: float, scalars: Mapping[str, float]) -> None:
        self._run.log({**scalars, "step": step, "_timestamp": time})

    def log_report(self, step: int) -> None:
        figures, documents = report_files(self._workdir, faces=False)
        if figures:
            images = {f"report/{path.stem}": self._image(str(path)) for path in figures}
            self._run.log({**images, "step": step})
        for path in documents:  # Copied, because W&B would only link them.
            copy = shutil.copy(path, self._run.dir)
            self._run.save(str(copy), base_path=self._run.dir, policy="now")

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


def choose_mode() -> str:
    """W&B's mode: the user's, or offline where there is no key or AGENET_OFFLINE is set.

    W&B would ask for a key on the terminal, and the run would wait.
    """
    mode = os.environ.get("WANDB_MODE") or "online"
    if mode not in ("online", "run", "shared"):
        return mode
    if is_offline():
        log.info("wandb: offline, because AGENET_OFFLINE is set")
    elif not _has_key():
        log.info("wandb: offline, because there is no key; `wandb login` stores one")
    else:
        return mode
    return "offline"


def _has_key() -> bool:
    if any(os.environ.get(name) for name in _KEYS):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _SERVER).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False


def _short(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Without the list of subjects, which is in lineage.json."""
    return {name: lineage[name] for name in ("dataset", "initial") if name in lineage}

"""What is compiled is kept for the next start, and where that cannot be nothing else changes."""

import os
from pathlib import Path

import pytest

from tests.conftest import run_program

PROGRAM = """
import sys
import jax
from agenet import compiled
from agenet.runs.logging import log_to
compiled._SHORTEST = 0
with log_to():
    compiled.keep_compiled()
    hits = []
    jax.monitoring.register_event_listener(
        lambda name, **kwargs: name.endswith("cache_hits") and hits.append(name)
    )
    jax.jit(lambda x: x * 3)(2.0)
print(bool(hits))
"""
# The tests themselves keep what they compile in a place of their own.
UNSET = {"JAX_COMPILATION_CACHE_DIR": ""}


def test_second_start_compiles_nothing(tmp_path: Path) -> None:
    folder = {"AGENET_CACHE": str(tmp_path)}
    assert run_program("-c", PROGRAM, **UNSET, **folder) == "False\n"
    (cache,) = tmp_path.glob("compiled/*/*-cache")
    assert cache.parent.stat().st_mode & 0o077 == 0
    # A killed process leaves a part of a file, without the time of its use.
    unfinished = cache.with_name("jit_killed-cache")
    unfinished.write_bytes(b"half of it")
    assert run_program("-c", PROGRAM, **UNSET, **folder) == "True\n"
    assert not unfinished.exists() and cache.exists()


def test_a_place_of_the_users_stays(tmp_path: Path) -> None:
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    run_program("-c", PROGRAM, AGENET_CACHE=str(tmp_path / "agenet"), **own)
    assert list(tmp_path.glob("own/*-cache")) and not (tmp_path / "agenet").exists()


@pytest.mark.parametrize("kind", ["file", "locked"])
def test_folder_that_cannot_be_written(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "compiled").write_text("")
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        tmp_path.chmod(0o500)
    told = run_program("-c", PROGRAM, **UNSET, AGENET_CACHE=str(tmp_path))
    first, answer = told.splitlines()
    assert "what is compiled is not kept: " in first and answer == "False"

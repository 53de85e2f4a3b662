"""The compilation cache serves a second start, and a folder that cannot be written is no error."""

import os
from pathlib import Path

import pytest

from tests.conftest import run_program

PROGRAM = """
import sys
import jax
from agenet.distributed import compilation_cache
from agenet.runs.logging import log_to
compilation_cache._MIN_COMPILE_SECONDS = 0
with log_to():
    compilation_cache.enable_compilation_cache()
    hits = []
    jax.monitoring.register_event_listener(
        lambda name, **kwargs: name.endswith("cache_hits") and hits.append(name)
    )
    jax.jit(lambda x: x * 3)(2.0)
print(bool(hits))
"""
# The test session has a compilation cache of its own.
UNSET = {"JAX_COMPILATION_CACHE_DIR": ""}


def test_second_start_compiles_nothing(tmp_path: Path) -> None:
    folder = {"AGENET_CACHE": str(tmp_path)}
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled").chmod(0o777)
    assert run_program("-c", PROGRAM, **UNSET, **folder) == "False\n"
    (cache,) = tmp_path.glob("compiled/*/*-cache")
    # Whoever can write there can run code as this user.
    assert all(parent.stat().st_mode & 0o777 == 0o700 for parent in cache.parents[:2])
    # A killed process leaves an incomplete file without a time of last use.
    unfinished = cache.with_name("jit_killed-cache")
    unfinished.write_bytes(b"half of it")
    assert run_program("-c", PROGRAM, **UNSET, **folder) == "True\n"
    assert not unfinished.exists() and cache.exists()


def test_the_users_cache_is_kept(tmp_path: Path) -> None:
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    run_program("-c", PROGRAM, AGENET_CACHE=str(tmp_path / "agenet"), **own)
    assert list(tmp_path.glob("own/*-cache")) and not (tmp_path / "agenet").exists()


@pytest.mark.parametrize("kind", ["file", "locked", "another user's"])
def test_folder_that_cannot_be_written(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "compiled").write_text("")
    elif kind == "another user's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder to another user")
        (tmp_path / "compiled").mkdir()
        os.chown(tmp_path / "compiled", 12345, 12345)
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        tmp_path.chmod(0o500)
    message = run_program("-c", PROGRAM, **UNSET, AGENET_CACHE=str(tmp_path))
    first, answer = message.splitlines()
    assert "compilation cache disabled: " in first and answer == "False"


def test_user_without_an_entry(tmp_path: Path) -> None:
    program = f"import pwd\npwd.getpwuid = lambda uid: {{}}[uid]\n{PROGRAM}"
    message = run_program("-W", "error", "-c", program, **UNSET, AGENET_CACHE=str(tmp_path))
    first, answer = message.splitlines()
    assert "compilation cache disabled: " in first and answer == "False"

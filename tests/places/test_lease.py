import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from agenet.errors import UserError
from agenet.places import lease as module
from agenet.places.lease import NAME, Lease
from agenet.places.stores import Address
from tests.places.stores import use_memory

RUN = Address("memory", "bucket/runs/a")
PATH = f"/bucket/runs/a/{NAME}"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    return use_memory(monkeypatch)


def lease(store: Any, copy: str = "mine", sleep: Callable[[float], None] = lambda s: None) -> Lease:
    return Lease(store, RUN, copy, sleep)


def test_it_is_held_and_given_back(store: Any) -> None:
    mine = lease(store)
    mine.acquire()
    mine.check()
    assert set(json.loads(store.cat_file(PATH))) == {"owner", "copy", "host", "process", "beats"}
    mine.release()
    assert not store.exists(PATH)


def test_a_living_holder_keeps_it(store: Any) -> None:
    holder = lease(store)
    holder.acquire()

    def sleep(seconds: float) -> None:
        holder._beats += 1
        holder._write()

    with pytest.raises(UserError, match=re.escape(f"{RUN} is in use: another process uses it (pr")):
        lease(store, "other", sleep).acquire()
    holder.check()
    holder.release()


def test_a_dead_holder_loses_it_and_notices(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    dead, waited = lease(store), []
    dead.acquire()
    other = lease(store, "other", waited.append)
    other.acquire()
    assert sum(waited) >= module.DEAD
    assert "uses it, or did until it was killed: watching" in capsys.readouterr().err
    other.check()
    with pytest.raises(UserError, match="another process has taken it over"):
        dead.check()
    dead.release()  # Not its own any more.
    other.check()
    other.release()


def test_on_the_same_machine_nobody_waits(store: Any) -> None:
    waited: list[float] = []
    lease(store).acquire()
    after = lease(store, "mine", waited.append)
    after.acquire()
    assert not waited
    after.release()


def test_of_two_that_take_it_over_one_has_it(store: Any) -> None:
    lease(store).acquire()
    second = lease(store, "second")

    def sleep(seconds: float) -> None:
        if seconds == module._SETTLE:  # The other one was as fast.
            second._write()

    with pytest.raises(UserError, match="is in use"):
        lease(store, "first", sleep).acquire()
    second.check()


def test_one_that_is_given_back_while_it_is_watched(store: Any) -> None:
    holder = lease(store)
    holder.acquire()
    other = lease(store, "other", lambda seconds: holder.release())
    other.acquire()
    other.check()
    other.release()


def test_a_store_without_locks_is_named(
    store: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = type(store).pipe_file
    monkeypatch.setattr(
        type(store), "pipe_file", lambda self, path, value, mode: pipe(self, path, value)
    )
    mine = lease(store)
    mine.acquire()
    assert "this store has no locks: start no second process" in capsys.readouterr().err
    mine.release()


def test_something_else_in_its_place(store: Any) -> None:
    store.pipe_file(PATH, b"[1]")
    mine = lease(store)
    mine.acquire()
    mine.check()
    mine.release()


def test_signs_of_life(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    mine = lease(store)
    mine.acquire()
    while json.loads(store.cat_file(PATH))["beats"] < 2:
        pass
    store.pipe_file(PATH, b'{"owner": "other"}')
    mine._thread.join(10)
    with pytest.raises(UserError, match="another process has taken it over"):
        mine.check()
    assert json.loads(store.cat_file(PATH)) == {"owner": "other"}
    mine.release()

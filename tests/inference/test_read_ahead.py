import threading
import time
from collections.abc import Callable, Iterable

import pytest

from agenet.inference.read_ahead import Hold, read_ahead


def read_all(
    items: Iterable[int],
    read: Callable[[int, Hold], str],
    *,
    patience: float = 20.0,
    room: int = 10**9,
) -> list[str | None]:
    def give_up(item: int) -> str:
        return f"gave up {item}"

    return list(
        read_ahead(items, read, give_up, patience, threads=3, ahead=8, room=room, pause=0.05)
    )


def test_order_and_pauses() -> None:
    def read(item: int, hold: Hold) -> str:
        time.sleep(0.2 if item == 5 else 0.001 * (item % 3))
        return str(item)

    found = read_all(range(30), read)
    assert [text for text in found if text is not None] == [str(item) for item in range(30)]
    assert found[:6].count(None) >= 1 and found[5] is None  # While item 5 is waited for.


def test_several_threads_read_at_once_but_not_too_far_ahead() -> None:
    at_once, taken = threading.Barrier(3), []

    def read(item: int, hold: Hold) -> str:
        at_once.wait(20)
        taken.append(item)
        return str(item)

    files = read_ahead(range(30), read, str, 20.0, threads=3, ahead=5, room=1, pause=20.0)
    assert next(files) == "0"
    time.sleep(0.1)
    assert len(taken) <= 6
    assert list(files) == [str(item) for item in range(1, 30)]


def test_what_is_read_ahead_holds_no_more_than_the_room() -> None:
    lock, held, most = threading.Lock(), dict[int, int](), []

    def read(item: int, hold: Hold) -> str:
        hold(4)
        with lock:
            held[item] = 4
            most.append(sum(held.values()))
        time.sleep(0.01)
        with lock:
            held.pop(item)
        hold(0)
        return str(item)

    assert read_all(range(30), read, room=4)[-1] == "29"
    assert 4 <= max(most) <= 8  # The next one to be yielded does not wait.


def test_an_item_that_is_larger_than_the_room_is_read_in_its_turn() -> None:
    def read(item: int, hold: Hold) -> str:
        hold(100)
        return str(item)

    assert read_all(range(9), read, room=1, patience=5.0) == [str(item) for item in range(9)]


def test_threads_that_do_not_return_are_replaced_and_hold_nothing() -> None:
    stuck = threading.Event()

    def read(item: int, hold: Hold) -> str:
        hold(10)
        if item % 2:
            stuck.wait(20)
        return str(item)

    try:
        found = [text for text in read_all(range(12), read, room=10, patience=0.2) if text]
    finally:
        stuck.set()
    assert found == [f"gave up {item}" if item % 2 else str(item) for item in range(12)]


def test_errors_are_raised_and_threads_end() -> None:
    before = set(threading.enumerate())

    def read(item: int, hold: Hold) -> str:
        hold(10)
        if item == 3:
            raise ValueError("item 3")
        return str(item)

    with pytest.raises(ValueError, match="item 3"):
        read_all(range(100), read, room=10)
    until = time.monotonic() + 20
    while set(threading.enumerate()) - before and time.monotonic() < until:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before

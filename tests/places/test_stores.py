import re
import sys
from pathlib import Path
from typing import Any

import pytest

from agenet.errors import UserError
from agenet.places.stores import (
    Address,
    check_writable,
    open_store,
    parse_address,
    store_errors_explained,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://bucket/runs/a", "s3://bucket/runs/a"),
        ("gs://bucket/runs/a/", "gs://bucket/runs/a"),
        ("s3://bucket", "s3://bucket"),
        (Path("s3://bucket/runs=1/a b.csv".replace(" ", "_")), "s3://bucket/runs=1/a_b.csv"),
        ("hf://datasets/user/name@v1/a.csv", "hf://datasets/user/name@v1/a.csv"),
    ],
)
def test_addresses(text: str | Path, address: str) -> None:
    parsed = parse_address(text)
    assert str(parsed) == address
    assert str(parsed.parent / parsed.name) == address or "/" not in parsed.path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s4://bucket/a", "s4://bucket/a: s4:// cannot be read: did you mean s3?; there are gs://"),
        ("file:///a/b", "file:// cannot be read: give the path alone; there are"),
        ("https://host/a", "https:// cannot be read"),
        ("s3://", "s3:// is not an address: write it like s3://BUCKET/FOLDER/NAME"),
        ("s3://bucket/../other", "is not an address"),
        ("s3://bucket/a b", "is not an address"),
        ("s3://bucket/*.csv", "is not an address"),
        ("hf://user/name/a.csv", "data on the hub is in hf://datasets/USER/NAME/FOLDER"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


def test_an_account_in_an_address_is_refused_and_not_shown() -> None:
    for text in ("s3://name:hidden@bucket/a", "s3://hidden@bucket", "sftp://name:hidden@host/a"):
        with pytest.raises(UserError, match="cannot hold an account") as caught:
            parse_address(text)
        assert "hidden" not in str(caught.value)


def test_a_missing_client_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme, package, extra in (("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=f'{scheme}:// needs the extra "{extra}"'):
            open_store(Address(scheme, "bucket/a"))


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENET_OFFLINE", "1")
    with pytest.raises(UserError, match="AGENET_OFFLINE forbids to look up s3://bucket/a"):
        open_store(Address("s3", "bucket/a"))


def test_nothing_is_written_to_the_hub() -> None:
    with pytest.raises(UserError, match="agenet push RUN hf://USER/NAME publishes"):
        check_writable(parse_address("hf://datasets/user/name/runs/a"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("The bucket does not exist"), "there is no such bucket, folder or file"),
        (
            PermissionError("Access Denied"),
            "the store denies this (Access Denied): set AWS_PROFILE",
        ),
        (OSError("Forbidden: https://..."), "the store denies this"),
        (OSError(5, "no connection\nto the server"), "no answer to use: [Errno 5] no connection"),
        (TimeoutError("timed out"), "no answer to use: timed out"),
        (type("NoCredentialsError", (Exception,), {})("Unable"), "no account to use (Unable)"),
    ],
)
def test_errors_of_stores_are_one_line(error: Exception, message: str) -> None:
    with (
        pytest.raises(UserError, match=re.escape(f"s3://bucket/a: {message}")) as caught,
        store_errors_explained(Address("s3", "bucket/a")),
    ):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [ValueError("of agenet"), OSError(28, "No space left"), OSError(13, "denied", "/a")]
)
def test_other_errors_pass(error: Any) -> None:
    with pytest.raises(type(error)), store_errors_explained(Address("s3", "bucket/a")):
        raise error

import os
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from agenet.errors import UserError
from agenet.server.access import LOOPBACK_NAMES, Access, is_loopback, read_token
from agenet.server.limits import Refused

TOKEN = "a-token-of-some-length"


def status(access: Access, path: str = "/v1/predict", **headers: str) -> int:
    try:
        access.check(path, Headers(headers))
    except Refused as refused:
        return refused.status
    return 200


def test_token() -> None:
    access = Access(TOKEN)
    assert status(access, authorization=f"Bearer {TOKEN}") == 200
    assert status(access, authorization=f"bearer  {TOKEN}") == 200
    for wrong in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", "Bearer é"):
        assert status(access, authorization=wrong) == 401, wrong
    assert status(access) == 401
    assert status(access, "/metrics") == 401
    assert status(access, "/gone") == 401
    assert status(access, "/healthz") == status(access, "/readyz") == 200


def test_host() -> None:
    access = Access(hosts=(*LOOPBACK_NAMES, "example.org"))
    for right in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "example.org"):
        assert status(access, host=right) == 200, right
    for wrong in ("", "evil.example", "127.0.0.1.evil.example", "[::1", "localhost@evil.example"):
        assert status(access, host=wrong) == 400, wrong
    assert status(access, "/healthz") == 400
    assert status(Access(), host="anything") == 200


def test_origin() -> None:
    access = Access(origins=("https://page.example",))
    host = "127.0.0.1:8000"
    assert status(access, host=host) == 200
    assert status(access, host=host, origin=f"http://{host}") == 200
    assert status(access, host=host, origin="https://page.example") == 200
    for wrong in ("https://evil.example", "null", "", "http://127.0.0.1:9000"):
        assert status(access, host=host, origin=wrong) == 403, wrong
    assert status(access, origin="http://") == 403


def test_token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENET_TOKEN", raising=False)
    assert read_token(None) is None
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    assert read_token(path) == TOKEN
    path.chmod(0o644)
    with pytest.raises(UserError, match=r"others may read it: chmod 600"):
        read_token(path)
    path.chmod(0o600)
    for wrong in ("", "short", "x" * 2000, "a token with spaces", "ä" * 20, "\0" * 20):
        path.write_text(wrong)
        with pytest.raises(UserError, match=f"--token-file {path}: a token has"):
            read_token(path)
    with pytest.raises(UserError, match="No such file"):
        read_token(tmp_path / "gone")
    with pytest.raises(UserError, match="Is a directory"):
        read_token(tmp_path)
    monkeypatch.setenv("AGENET_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    monkeypatch.setenv("AGENET_TOKEN", "")
    with pytest.raises(UserError, match="AGENET_TOKEN"):
        read_token(None)


def test_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UserError, match="not a file"):
        read_token(tmp_path / "pipe")


def test_loopback() -> None:
    assert is_loopback("127.9.9.9") and is_loopback("::1") and is_loopback("::1%lo")
    assert not is_loopback("0.0.0.0") and not is_loopback("::") and not is_loopback("10.0.0.1")

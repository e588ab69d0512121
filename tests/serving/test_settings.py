"""Settings of the server, and its token."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from unfuse.errors import FileAccessError, InputError
from unfuse.serving.settings import TOKEN_VARIABLE, ServeSettings, is_loopback, read_token


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("example.com", False), ("127.0.0.1.x", False)],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
    if not loopback:
        with pytest.raises(InputError, match="no token"):
            ServeSettings(host=host)
        ServeSettings(host=host, open_to_all=True)
        ServeSettings(host=host, token="0123456789abcdef")


def test_repr_hides_the_token() -> None:
    assert "secret" not in repr(ServeSettings(token="secret-secret-secret"))


def test_where_a_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("from-a-file-0123456789\n")
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment")
    assert read_token(file) == "from-a-file-0123456789"
    assert TOKEN_VARIABLE not in os.environ, "what the process starts must not inherit it"
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment")
    assert read_token(None) == "from-the-environment"
    assert read_token(None) is None
    for content in ("short", "with blanks within it", "ümlaut-ümlaut-ümlaut", ""):
        file.write_text(content)
        with pytest.raises(InputError, match="at least 16 printable"):
            read_token(file)
    with pytest.raises(FileAccessError):
        read_token(tmp_path / "missing")


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"timeout_s": 0},
        {"max_upload_bytes": 0},
        {"scene_bytes": 0},
        {"max_concurrent": 0},
        {"queue": -1},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ServeSettings(**wrong)

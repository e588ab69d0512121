"""Settings of a server: address, token and limits."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from unfuse.errors import FileAccessError, InputError

TOKEN_VARIABLE: Final = "UNFUSE_SERVE_TOKEN"  # its name, not a token
_MIN_TOKEN: Final = 16
MIB: Final = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """Address, token and limits of one server."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 for any free port."""
    token: str | None = field(default=None, repr=False)
    """Token that clients send as ``Authorization: Bearer ...``; None for no token."""
    open_to_all: bool = False
    """Allow other machines to connect without a token."""
    max_upload_bytes: int = 256 * MIB
    timeout_s: float = 120.0
    """Time limit of a request, from its first byte to the last byte of its answer."""
    max_concurrent: int | None = None
    """Answers generated at the same time; the engine's default for None."""
    queue: int = 64
    """Largest number of waiting answers, and of uploads in progress; the server refuses more."""
    scene_bytes: int = 1024 * MIB
    """Memory of the scene cache; the least recently used scene is evicted."""
    reading_s: float = 30.0
    """Time limit for reading the frames of an uploaded file."""
    opening_s: float = 10.0
    """Time limit for a request's head, and for each gap in its body."""
    max_new_tokens: int = 512
    """Default for requests without ``max_tokens``."""
    max_new_tokens_limit: int = 4096
    """Largest ``max_tokens`` of a request."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError("port", found=self.port, expected="0 to 65535")
        if self.timeout_s <= 0:
            raise InputError("timeout-s", found=self.timeout_s, expected="a number of seconds above 0")
        for name, value in (
            ("max-upload-mb", self.max_upload_bytes),
            ("scenes-mb", self.scene_bytes),
            ("max-concurrent", self.max_concurrent),
        ):
            if value is not None and value < 1:
                raise InputError(name, found=value, expected="at least 1")
        if self.queue < 0:
            raise InputError("queue", found=self.queue, expected="at least 0")
        if self.token is None and not self.open_to_all and not is_loopback(self.host):
            raise InputError(
                f"host {self.host}",
                found="an address that other machines reach, and no token",
                expected="a token",
                fix=f"give --token-file, set {TOKEN_VARIABLE}, or say --no-token",
            )

    @property
    def max_inline_bytes(self) -> int:
        """Size limit of a file inside a chat request; such a file is held in memory as base64."""
        return min(self.max_upload_bytes, 32 * MIB)


def is_loopback(host: str) -> bool:
    """Return whether an address is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path | None) -> str | None:
    """Return the token in a file or else in the environment, and clear it from the environment; None without a token.

    The token is not a command-line option, because other users of a machine can read a process's arguments.

    Raises:
        FileAccessError: the file cannot be read.
        InputError: the token is too short, or cannot be sent in a header.
    """
    where = str(path) if path is not None else TOKEN_VARIABLE
    given = os.environ.pop(TOKEN_VARIABLE, None)
    if path is not None:
        try:
            given = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            found = getattr(error, "strerror", None) or type(error).__name__
            raise FileAccessError(where, found=found, expected="a readable file with a token") from None
    if given is None:
        return None
    token = given.strip()
    if len(token) < _MIN_TOKEN or not all("!" <= c <= "~" for c in token):
        raise InputError(
            f"token in {where}",
            found=f"{len(token)} characters" if len(token) < _MIN_TOKEN else "blanks or characters beyond ASCII",
            expected=f"at least {_MIN_TOKEN} printable ASCII characters",
            fix="make a token with: openssl rand -hex 32",
        )
    return token

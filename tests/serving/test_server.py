"""The address that the server listens on."""

from __future__ import annotations

import pytest

from unfuse.errors import InputError
from unfuse.serving.server import bind, url_of
from unfuse.serving.settings import ServeSettings


def test_an_address_that_is_taken() -> None:
    with bind(ServeSettings(port=0)) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert url_of(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(InputError, match="give another --port|Give another --port"):
            bind(ServeSettings(port=port))
    with pytest.raises(InputError, match="an address of this machine"):
        bind(ServeSettings(host="203.0.113.1", port=0, open_to_all=True))

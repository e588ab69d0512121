"""Hostile requests are refused in one line, at a bounded cost, and the next client is served."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pickle
import select
import socket
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.serving.conftest import OPENING_S, Served, about
from tests.started import PATIENCE_S, wait_for
from unfuse.events import EventStream, write_eventgpt_npy
from unfuse.samples.video import write_frames
from unfuse.serving import sandbox_worker
from unfuse.serving.settings import ServeSettings

TOKEN = "correct-horse-battery-staple"
MIB = 1 << 20


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/unfuse-was-here",)


@pytest.fixture(autouse=True)
def _sound_afterwards(served: Served) -> Iterator[None]:
    """After any request: no file stays behind, and a good request is answered."""
    yield
    assert not [path for path in served.service._intake._folder.iterdir() if path.name != ".lock"]
    assert served.service.engine.ready
    reply = served.http.post(
        "/v1/chat/completions", json={"model": "demo", "messages": about("demo:0"), "max_tokens": 1}
    )
    assert reply.status_code == 200


def refused(reply: httpx.Response, status: int, words: str = "") -> None:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert "/tmp" not in error["message"], "no path of this machine is revealed"


def upload(served: Served, data: bytes, name: str = "r.npy") -> httpx.Response:
    return served.http.post("/v1/files", files={"file": (name, data)})


def npz_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "xytp":
            archive.writestr(f"{name}.npy", bytes(64 * MIB))
    return file.getvalue()


def png_bomb() -> bytes:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = 60_000
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000 * (3 * size + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", rows) + part(b"IEND", b"")


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def strip_of_events(tmp: Path) -> bytes:
    """Events on one line of 8000 pixels: the picture of the frame would have millions of columns."""
    n = 1000
    x = np.linspace(0, 7999, n).astype(np.uint16)
    stream = EventStream.from_arrays(x, np.zeros(n, np.uint16), np.arange(n), np.ones(n, np.uint8))
    write_eventgpt_npy(tmp / "strip.npy", stream)
    return (tmp / "strip.npy").read_bytes()


def claims() -> bytes:
    """The head of a file of 900 billion events, and one of them."""
    header = b"{'descr': [('x', '<u2'), ('y', '<u2'), ('t', '<i8'), ('p', 'u1')], 'fortran_order': False, "
    header += b"'shape': (900000000000,), }\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(13)


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(Evil(), dtype=object), allow_pickle=True)
    return file.getvalue()


def truncated_video(tmp: Path) -> bytes:
    frames = [np.full((48, 64, 3), i * 20, np.uint8) for i in range(8)]
    write_frames(tmp / "v.mp4", frames, 8)
    return (tmp / "v.mp4").read_bytes()[:700]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pickle", "plain"),
        ("bare pickle", "unknown format"),
        ("npz bomb", "real events"),
        ("png bomb", "pixels"),
        ("truncated png", "no readable image"),
        ("long png", "side over 16"),
        ("strip of events", "side over 16"),
        ("truncated video", "a video"),
        ("playlist", ""),
        ("html", ""),
        ("zeros", "unknown format"),
        ("huge header", "header"),
        ("claims", "bytes of events"),
    ],
)
def test_files_that_are_not_what_they_should_be(served: Served, tmp_path: Path, name: str, words: str) -> None:
    whole = picture(64, 48)
    made = {
        "pickle": pickled,
        "bare pickle": lambda: pickle.dumps(Evil()),
        "npz bomb": npz_bomb,
        "png bomb": png_bomb,
        "truncated png": lambda: whole[: len(whole) // 2],
        "long png": lambda: picture(4000, 2),
        "strip of events": lambda: strip_of_events(tmp_path),
        "truncated video": lambda: truncated_video(tmp_path),
        "playlist": lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "html": lambda: b"<html><script>alert(1)</script></html>\n",
        "zeros": lambda: bytes(1000),
        "huge header": lambda: b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
        "claims": claims,
    }[name]()
    refused(upload(served, made), 400, words)
    assert not Path("/tmp/unfuse-was-here").exists()


def test_frames_that_are_too_large_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"picture-{n}.png" for n in range(4)]
    for path in paths:
        path.write_bytes(picture(64, 48))
    request = {"paths": [str(path) for path in paths], "takes": "events"}
    ((message, _),) = sandbox_worker.answer(request)
    assert message["shapes"] == 4 * [(48, 64, 3)]
    monkeypatch.setattr(sandbox_worker, "MAX_SCENE_PIXELS", 4 * 48 * 64 - 1)
    ((message, blobs),) = sandbox_worker.answer(request)
    assert message["refused"] == "upload: found 4 frames of 12288 pixels together, expected at most 12287 in a scene"
    assert not blobs


def test_a_truncated_recording_is_refused(served: Served, recording: Path) -> None:
    refused(upload(served, recording.read_bytes()[:-1000]), 400)


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "..\\..\\boot.ini", "/etc/shadow", "a\x1b[31m\u202eb.npy", "x" * 500, "\x00", ".."]
)
def test_a_client_s_name_is_for_display_only(served: Served, recording: Path, name: str) -> None:
    served.http.delete(f"/v1/files/{upload(served, recording.read_bytes()).json()['id']}")
    reply = upload(served, recording.read_bytes(), name)
    assert reply.status_code == 200
    filename = reply.json()["filename"]
    assert "/" not in filename
    assert "\\" not in filename
    assert filename.isprintable()
    assert len(filename) <= 120
    folder = served.service._intake._folder
    assert {path.name for path in folder.iterdir()} == {".lock"}
    assert folder.stat().st_mode & 0o077 == 0, "nobody else may look into it"


def test_the_type_that_a_client_claims_means_nothing(served: Served, recording: Path) -> None:
    reply = served.http.post("/v1/files", files={"file": ("scene.png", recording.read_bytes(), "image/png")})
    assert reply.json()["unfuse"]["media"] == "event_data"


def test_what_is_too_large_is_refused_before_it_is_sent(served: Served) -> None:
    with served.connect() as raw:
        raw.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        status, body = answer(raw)
    assert status == 413
    assert json.loads(body)["error"]["code"] == "too_large"


def test_what_turns_out_too_large_is_refused_on_the_way(served: Served) -> None:
    """Chunked: nothing is announced. The server closes soon after, however much is still to come."""
    sent = 0
    with served.connect() as raw:
        raw.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        raw.sendall(f"{len(head):x}\r\n".encode() + head + b"\r\n")
        block = f"{MIB:x}\r\n".encode() + bytes(MIB) + b"\r\n"
        try:
            for _ in range(200):
                raw.sendall(block)
                sent += 1
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert 8 <= sent < 100
    assert served.metric('unfuse_requests_total{path="/v1/files",status="413"}') > 0


def test_a_real_client_sees_why(served: Served) -> None:
    refused(upload(served, bytes(12 * MIB)), 413, "at most")


def test_ten_thousand_parts(served: Served) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(served.http.post("/v1/files", content=part * 10_000 + b"--b--\r\n", headers=headers), 400, "Too many")
    part = part.replace(b'name="a"', b'name="file"; filename="f"')
    refused(served.http.post("/v1/files", content=part * 10_000 + b"--b--\r\n", headers=headers), 400, "Too many")


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"Content-Type": "application/octet-stream"}, b"x", 415),
        ({"Content-Type": "multipart/form-data"}, b"x", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"no boundary here", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b--\r\n", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"", 400),
        ({}, b"", 415),
    ],
)
def test_forms_that_are_none(served: Served, headers: dict[str, str], content: bytes, status: int) -> None:
    refused(served.http.post("/v1/files", content=content, headers=headers), status)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\xff\xfe{}", "invalid_json"),
        (b'{"model": "demo", "messages": [{"role": "user", "content": "\xc3\x28"}]}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a":' * 50_000, "invalid_json"),
        (b"1" * 10_000, "invalid_json"),
        (b"", "invalid_json"),
        (b"null", "invalid_value"),
        (b'{"model": "demo"}', "invalid_value"),
        (b'{"model": "demo", "messages": [{"role": "user", "content": [{"type": ["text"]}]}]}', "unsupported_content"),
        (b'{"model": "demo", "messages": [{"role": "user", "content": [[]]}]}', "invalid_value"),
        (b'{"model": "demo", "messages": [{"role": "user", "content": "\\ud800"}]}', "bad_content"),
        (b'{"model": "demo", "messages": [], "\\ud800": 1}', "invalid_value"),
        (b'{"model": "demo", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}', "invalid_value"),
    ],
)
def test_json_that_is_none(served: Served, content: bytes, code: str) -> None:
    reply = served.http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    refused(reply, 400)
    assert reply.json()["error"]["code"] == code


def test_huge_json_is_refused(served: Served) -> None:
    content = b'{"model": "' + b"x" * (14 * MIB) + b'"}'
    reply = served.http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    refused(reply, 413)


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}, "remote_url"),
        ({"type": "image_url", "image_url": "https://example.com/a.png"}, "remote_url"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "remote_url"),
        ({"type": "input_image", "image_url": "/etc/passwd"}, "remote_url"),
        ({"type": "input_file", "file_url": "https://example.com/a.npy"}, "remote_url"),
        ({"type": "file", "file": {"file_id": "../../etc/passwd"}}, "no_such_file"),
        ({"type": "file", "file": {"file_data": "no base64!"}}, "bad_content"),
        ({"type": "file", "file": {"file_data": ""}}, "bad_content"),
        ({"type": "file", "file": {"file_data": base64.b64encode(b"junk").decode()}}, "bad_input"),
        ({"type": "file", "file": 3}, "bad_content"),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, "unsupported_content"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,raw"}}, "bad_content"),
    ],
)
def test_nothing_is_fetched_and_no_path_is_opened(served: Served, part: dict[str, Any], code: str) -> None:
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    reply = served.http.post("/v1/chat/completions", json={"model": "demo", "messages": messages})
    refused(reply, 404 if code == "no_such_file" else 400)
    assert reply.json()["error"]["code"] == code


def answer(raw: socket.socket) -> tuple[int, bytes]:
    """Status and body of the response, up to the end of the connection or of the announced length."""
    reply = b""
    while part := raw.recv(65536):
        reply += part
        head, found, body = reply.partition(b"\r\n\r\n")
        length = next(
            (int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length")), 0
        )
        if found and len(body) >= length:
            break
    return (int(reply.split()[1]) if reply else 0), reply.partition(b"\r\n\r\n")[2]


def hear(served: Served, raw: socket.socket) -> None:
    """Let the server's time pass until it answers or closes; its answer is not taken."""

    def heard() -> bool:
        served.passes(OPENING_S + 1)
        return bool(select.select([raw], [], [], 0.1)[0])

    wait_for(lambda: served.holds(raw) or select.select([raw], [], [], 0)[0])
    wait_for(heard)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "])
def test_a_client_that_never_completes_a_request(served: Served, sent: bytes) -> None:
    with served.connect() as raw:
        raw.sendall(sent)
        hear(served, raw)
        assert_closed(raw)


def test_a_head_a_byte_at_a_time(served: Served) -> None:
    """Each byte would start uvicorn's own clock again, had it one: four of them come within the time of a head."""
    with served.connect() as raw, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
        wait_for(lambda: served.holds(raw))

        def closed_after_a_byte() -> bool:
            served.passes(OPENING_S / 4)
            raw.sendall(b"a")
            return bool(select.select([raw], [], [], 0.1)[0])

        wait_for(closed_after_a_byte)
        assert_closed(raw)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/chat/completions"])
def test_a_body_that_stops_coming(served: Served, path: str) -> None:
    kind = b"multipart/form-data; boundary=b" if path == "/v1/files" else b"application/json"
    with served.connect() as raw:
        raw.sendall(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\nContent-Type: ".encode()
            + kind
            + b"\r\n\r\n"
            + (b"--b\r\n" if path == "/v1/files" else b"{")
        )
        # Once the head is whole, the time is the body's.
        wait_for(lambda: any(each.cycle is not None for each in list(served.server.server_state.connections)))
        hear(served, raw)
        status, body = answer(raw)
    assert status == 408
    assert json.loads(body)["error"]["code"] == "too_slow"


def test_a_client_that_does_not_read(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Its answer is given up once it takes nothing for a while."""
    name = served.http.post("/v1/unfuse/demo/demo:0").json()["id"]
    picture = len(served.http.get(f"/v1/files/{name}/frames/0").content)
    request = f"GET /v1/files/{name}/frames/0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        raw.connect(("127.0.0.1", served.port))
        raw.sendall(request * 200)
        wait_for(lambda: select.select([raw], [], [], 0)[0])

        def given_up() -> bool:
            served.passes(OPENING_S + 1)
            return "ASGI callable returned without" in caplog.text  # uvicorn, of an answer that ended in its middle

        wait_for(given_up)
        got = 0
        raw.settimeout(PATIENCE_S)
        with contextlib.suppress(ConnectionResetError):
            while part := raw.recv(65536):
                got += len(part)
    assert got < 200 * picture


def assert_closed(raw: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):
        assert raw.recv(1) == b""


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1].evil"])
def test_another_name_for_this_machine(served: Served, host: str) -> None:
    """DNS rebinding: a page of another site with a name that resolves to this server."""
    refused(served.http.get("/v1/files", headers={"Host": host}), 421, "expected this machine")


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000", "127.8.8.8"])
def test_this_machine_s_own_names(served: Served, host: str) -> None:
    assert served.http.get("/v1/files", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9"])
def test_another_site_s_page(served: Served, origin: str, recording: Path) -> None:
    """A form of theirs needs no permission of ours to be sent."""
    files = {"file": ("r.npy", recording.read_bytes())}
    refused(served.http.post("/v1/files", files=files, headers={"Origin": origin}), 403)
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in served.http.options("/v1/files", headers=headers).headers


def test_our_own_page(served: Served) -> None:
    assert served.http.get("/v1/files", headers={"Origin": served.url}).status_code == 200


def test_headers_that_contradict_each_other(served: Served) -> None:
    with served.connect() as raw:
        raw.sendall(b"GET /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
        assert answer(raw)[0] == 400


@pytest.fixture(scope="module")
def locked(demo_model: Any) -> Iterator[Served]:
    running = Served(demo_model, ServeSettings(port=0, token=TOKEN))
    yield running
    running.close()


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer  x", f"Basic {TOKEN}", "Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}",
     f"Bearer {TOKEN.upper()}", b"Bearer \xff\xfe"],
)  # fmt: skip
def test_a_wrong_token(locked: Served, given: Any) -> None:
    headers = {} if given is None else {"Authorization": given}
    with httpx.Client(base_url=locked.url) as client:
        for path in ("/v1/models", "/v1/files", "/metrics", "/v1/unfuse", "/nothing"):
            reply = client.get(path, headers=headers)
            refused(reply, 401)
            assert reply.headers["www-authenticate"] == "Bearer"


def test_the_right_token(locked: Served) -> None:
    assert [model.id for model in locked.openai.models.list()] == ["demo"]
    with httpx.Client(base_url=locked.url) as client:
        assert client.get("/").status_code == client.get("/health").status_code == 200


def test_a_file_is_not_read_without_the_token(locked: Served) -> None:
    with locked.connect() as raw:
        raw.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n"
        )
        assert answer(raw)[0] == 401

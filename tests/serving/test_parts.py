"""Small parts of the server, each alone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.started import PATIENCE_S
from unfuse.adapters.pieces import TextPieces
from unfuse.errors import FileAccessError, InputError, MediaError
from unfuse.serving import intake
from unfuse.serving.conversation import Message, asked_of
from unfuse.serving.intake import Intake, shown_name
from unfuse.serving.kinds import LOADERS, kind_of, sample_of, taken_by
from unfuse.serving.page import page
from unfuse.serving.server import bind, url_of
from unfuse.serving.service import public_name
from unfuse.serving.settings import TOKEN_VARIABLE, ServeSettings, is_loopback, read_token
from unfuse.serving.stop import StopTexts
from unfuse.serving.wire import RequestError


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"\xff\xd8\xff\xe0", "image"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"\0\0\0\x20ftypisom", "video"),
        (b"\x1aE\xdf\xa3", "video"),
        (b"\x93NUMPY", "events"),
        (b"#EXTM3U", "events"),
        (b"%!PS-Adobe", "events"),
        (b"", "events"),
    ],
)
def test_first_bytes_say_what_it_is(head: bytes, kind: str) -> None:
    assert kind_of(head) == kind


def test_files_of_one_scene(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(40)]
    assert sample_of(paths[:5], "image", "events").event_image == tuple(paths[:5])
    assert sample_of(paths[:1], "image", "video").image == paths[0]
    assert sample_of(paths[:1], "events", "image").event_data == paths[0]
    assert sample_of(paths[:1], "video", "image").video == paths[0]
    wrong = [(33, "image", "events"), (2, "image", "video"), (2, "events", "events"), (1, "video", "events")]
    for count, kind, takes in wrong:
        with pytest.raises(MediaError):
            sample_of(paths[:count], kind, takes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["random:llava-tiny", "random:video-llava-tiny"])
def test_readers_show_what_the_adapters_would(name: str, recording: Path) -> None:
    """Stage 1 in the reader's process is the adapter's; EventGPT's is held in test_reading."""
    import unfuse
    from unfuse.samples import Sample

    with unfuse.load(name, device="cpu") as model:
        sample = Sample.from_events(recording)
        ours, theirs = LOADERS[taken_by(model.adapter)](sample), model.load(sample)
    assert ours.media_sha256 == theirs.media_sha256
    assert ours.notes == theirs.notes
    assert len(ours.frames) == len(theirs.frames) == (8 if "video" in name else 1)
    assert all((a == b).all() for a, b in zip(ours.frames, theirs.frames, strict=True))


def test_stop_texts() -> None:
    stops = StopTexts(["END", "\n\n"])
    assert [stops.feed(text) for text in ("A b", "ox E", "N", "ough", "\n", "x", " EN", "D after")] == [
        "A b", "ox ", "", "ENough", "", "\nx", " ", "",
    ]  # fmt: skip
    assert stops.hit
    assert stops.feed("more") == stops.end() == ""
    held = StopTexts(["END"])
    assert held.feed("EN") == ""
    assert held.end() == "EN"
    assert StopTexts([]).feed("END") == "END"
    both = StopTexts(["bc", "b"])
    assert both.feed("abc") == "a", "the earliest, whichever it is"


def test_pieces_are_the_text(demo_model: Any) -> None:
    """With characters of several bytes, which this tokenizer writes byte by byte, and blanks at both ends."""
    from unfuse.models.eventgpt.tokenizer import load_tokenizer
    from unfuse.samples.demo import demo_checkpoint

    tokenizer = load_tokenizer(demo_checkpoint(), demo_model.adapter.model.config)
    for text in ("A box moves, and 3 discs do not.", "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600 end", "  a  b \n\n c "):
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        pieces = TextPieces(demo_model.adapter.decode_text)
        out = [pieces.add(i) for i in ids]
        assert "\ufffd" not in "".join(out)
        assert "".join([*out, pieces.end()]) == demo_model.adapter.decode_text(ids)
        cut = TextPieces(demo_model.adapter.decode_text)
        begun = [cut.add(i) for i in ids[:-2]]
        assert "".join([*begun, cut.end()]) == demo_model.adapter.decode_text(ids[:-2])


def test_the_cost_of_a_token_does_not_grow() -> None:
    lengths = []

    def decode(ids: tuple[int, ...]) -> str:
        lengths.append(len(ids))
        return " ".join(map(str, ids))

    pieces = TextPieces(decode)
    assert "".join(pieces.add(i) for i in range(500)) == " ".join(map(str, range(500)))
    assert max(lengths) <= 2


def messages(*given: Any) -> list[Message]:
    return [Message.model_validate(each) for each in given]


def scene(file_id: str) -> dict[str, Any]:
    return {"type": "file", "file": {"file_id": file_id}}


def test_the_last_question_about_the_last_scene() -> None:
    asked = asked_of(
        messages(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [scene("a"), {"type": "text", "text": "First?"}]},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "user", "content": [scene("b"), {"type": "input_text", "text": "Second?"}]},
            {"role": "user", "content": [{"type": "text", "text": "Third"}, {"type": "text", "text": "and more?"}]},
            {"role": "assistant", "content": "A beginning"},
        ),
        most_bytes=100,
    )
    assert asked.question == "Third\nand more?"
    assert asked.scene_id == "b"
    assert "5 other messages" in asked.notes[0]


def test_one_message_is_no_dialogue() -> None:
    assert asked_of(messages({"role": "user", "content": [scene("a")]}), most_bytes=1).notes == ()


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([scene("a"), scene("b")], "several_scenes"),
        ([scene("a"), {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}}], "several_scenes"),
        ([{"type": "file", "file": {"file_data": "a" * 4000}}], "file_too_large"),
        (100 * [{"type": "file", "file": {"file_data": "aaaa" * 10}}], "file_too_large"),
    ],
)
def test_scenes_that_are_not_one(parts: list[Any], code: str) -> None:
    with pytest.raises(RequestError) as caught:
        asked_of(messages({"role": "user", "content": parts}), most_bytes=1000)
    assert caught.value.code == code


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


def test_a_token_is_not_shown() -> None:
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
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ServeSettings(**wrong)


def test_an_address_that_is_taken() -> None:
    with bind(ServeSettings(port=0)) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert url_of(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(InputError, match="give another --port|Give another --port"):
            bind(ServeSettings(port=port))
    with pytest.raises(InputError, match="an address of this machine"):
        bind(ServeSettings(host="203.0.113.1", port=0, open_to_all=True))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.npy", "a.npy"),
        ("/etc/passwd", "passwd"),
        ("..\\x\\y.h5", "y.h5"),
        ("a\nb", "ab"),
        ("", "upload"),
        ("x/", "upload"),
    ],
)
def test_names_to_be_shown(name: str, shown: str) -> None:
    assert shown_name(name) == shown


def test_files_lie_in_a_private_folder_and_go() -> None:
    place = Intake()
    upload = place.keep([io.BytesIO(b"one"), io.BytesIO(b"two")], "../../x")
    assert [path.read_bytes() for path in upload.paths] == [b"one", b"two"]
    assert upload.num_bytes == 6
    folder = upload.paths[0].parent
    assert folder.stat().st_mode & 0o777 == 0o700
    upload.discard()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    place.keep([io.BytesIO(b"one")], "x")
    place.close()
    place.close()
    assert not folder.exists()


def test_what_a_killed_server_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(intake, "_YOUNG_S", -PATIENCE_S)
    code = (
        "import io, os, signal, tempfile\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "from unfuse.serving.intake import Intake\n"
        "Intake().keep([io.BytesIO(b'x' * 100)], 'x')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list(tmp_path.glob("unfuse-serve-*/*"))) == 2
    monkeypatch.setattr(intake.tempfile, "tempdir", str(tmp_path))
    mine = Intake()
    other = Intake()
    assert len(list(tmp_path.iterdir())) == 2, "those of servers that run stay"
    mine.close()
    other.close()
    assert not list(tmp_path.iterdir())


def test_a_model_s_name_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "EventGPT-7b").mkdir()
    assert public_name(str(tmp_path / "EventGPT-7b")) == "EventGPT-7b"
    assert public_name("demo") == "demo"
    assert public_name("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


def test_the_page_is_one_document() -> None:
    made = page()
    assert "/*STYLE*/" not in made.html
    assert "/*SCRIPT*/" not in made.html
    assert "http" not in made.html.replace("http-equiv", "")
    assert made.policy.count("'sha256-") == 2

"""Uploaded files: their names, and the private folder they lie in."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from tests.started import PATIENCE_S
from unfuse.serving import intake
from unfuse.serving.intake import Intake, display_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.npy", "a.npy"),
        ("/etc/passwd", "passwd"),
        ("..\\x\\y.h5", "y.h5"),
        ("a\nb", "ab"),
        ("", "upload"),
        ("x/", "upload"),
    ],
)
def test_display_names(name: str, expected: str) -> None:
    assert display_name(name) == expected


def test_files_lie_in_a_private_folder_until_discarded() -> None:
    intake = Intake()
    upload = intake.save([io.BytesIO(b"one"), io.BytesIO(b"two")], "../../x")
    assert [path.read_bytes() for path in upload.paths] == [b"one", b"two"]
    assert upload.num_bytes == 6
    folder = upload.paths[0].parent
    assert folder.stat().st_mode & 0o777 == 0o700
    upload.discard()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    intake.save([io.BytesIO(b"one")], "x")
    intake.close()
    intake.close()
    assert not folder.exists()


def test_folders_of_killed_servers_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(intake, "_YOUNG_S", -PATIENCE_S)
    code = (
        "import io, os, signal, tempfile\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "from unfuse.serving.intake import Intake\n"
        "Intake().save([io.BytesIO(b'x' * 100)], 'x')\n"
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

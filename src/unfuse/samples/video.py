"""Read and write video files through PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfuse.errors import FileAccessError, MediaError, MissingPackageError
from unfuse.extras import install_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

_MAX_PIXELS = 64_000_000
_EXPECTED = "an undamaged video file with frames"


def count_frames(path: Path) -> int:
    """Count frames by their packets, because a header may be wrong.

    Raises:
        MissingPackageError: PyAV is not installed.
        FileAccessError: no such file.
        MediaError: not a video, or one without frames.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        total = sum(1 for packet in container.demux(stream) if packet.size)
    if not total:
        raise MediaError(str(path), found="no frames", expected=_EXPECTED)
    return total


def read_frames(path: Path, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Decode the frames at ``indices`` (0 is the first shown), read-only uint8 RGB ``[H, W, 3]``; an index may repeat.

    Raises:
        MissingPackageError: PyAV is not installed.
        FileAccessError: no such file.
        MediaError: not a video, damaged, or shorter than an index.
    """
    wanted, last = set(indices), max(indices)
    found: dict[int, NDArray[np.uint8]] = {}
    with _opened(path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                array = frame.to_ndarray(format="rgb24")
                array.setflags(write=False)
                found[index] = array
            if index == last:
                break
    if missing := sorted(wanted - found.keys()):
        raise MediaError(str(path), found=f"no frame {missing[0]}", expected=_EXPECTED)
    return [found[index] for index in indices]


def video_library(path: Path) -> Any:
    """Return PyAV.

    Args:
        path: file to read or write, for the message.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingPackageError(
            str(path),
            found="PyAV is not installed",
            expected="this package, to read and write video files",
            fix=f"run: {install_command('unfuse[video]')}",
        ) from None
    return av


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    av = video_library(path)
    if not path.is_file():
        raise FileAccessError(str(path), found="no such file", expected="a video file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(str(path), found="no video stream", expected=_EXPECTED)
            picture = container.streams.video[0].codec_context
            if picture is None:
                raise MediaError(str(path), found="a video stream of no known codec", expected=_EXPECTED)
            if picture.width * picture.height > _MAX_PIXELS:
                size = f"{picture.width} x {picture.height} pixels"
                raise MediaError(str(path), found=size, expected=f"at most {_MAX_PIXELS}")
            yield container
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise MediaError(str(path), found=f"no readable video ({error})", expected=_EXPECTED) from None


def write_frames(path: Path, frames: Iterable[NDArray[np.uint8]], rate: int) -> None:
    """Write RGB uint8 frames ``[H, W, 3]`` of one size as an H.264 file, without an odd last row or column.

    Raises:
        MissingPackageError: PyAV is not installed.
    """
    av = video_library(path)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.pix_fmt = "yuv420p"
        # The file must depend neither on the number of cores nor on earlier contents of memory, which changed the
        # result of x264's lookahead on small frames.
        stream.options = {"threads": "1", "x264-params": "rc-lookahead=0:mbtree=0:weightp=0"}
        for number, frame in enumerate(frames):
            height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
            if not number:
                stream.width, stream.height = width, height
            picture = av.VideoFrame.from_ndarray(frame[:height, :width].copy(), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())

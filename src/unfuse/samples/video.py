"""Read and write video files through PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfuse.errors import FileAccessError, MediaError, MissingPackageError
from unfuse.extras import install_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

_MAX_PIXELS = 64_000_000
_MATRIX_BYTES = 36
_EXPECTED = "an undamaged video file with frames"


def check_video(path: Path) -> None:
    """Check that a file is a video with frames, without decoding them.

    Raises:
        MissingPackageError: PyAV is not installed.
        FileAccessError: no such file.
        MediaError: not a video, or one without frames.
    """
    with _opened(path) as container:
        if not _packets(container):
            raise MediaError(str(path), found="no frames", expected=_EXPECTED)


def count_frames(path: Path) -> int:
    """Count the frames that a player shows, by decoding them.

    A file may hold more packets: an edit list hides frames before the start of a trimmed video.

    Raises:
        MissingPackageError: PyAV is not installed.
        FileAccessError: no such file.
        MediaError: not a video, damaged, or one without frames.
    """
    with _opened(path) as container:
        total = sum(1 for _ in container.decode(video=0))
    if not total:
        raise MediaError(str(path), found="no frames", expected=_EXPECTED)
    return total


def select_frames(path: Path, pick: Callable[[int], list[int]]) -> list[NDArray[np.uint8]]:
    """Decode the frames that ``pick`` chooses among the shown ones; as ``read_frames`` of ``count_frames``, faster.

    Args:
        path: the video.
        pick: maps the number of frames to indices.

    Raises:
        MissingPackageError: PyAV is not installed.
        FileAccessError: no such file.
        MediaError: not a video, damaged, or one without frames.
    """
    with _opened(path) as container:
        expected = _packets(container)
    # Nearly every file shows a frame per packet, so one pass decodes both the frames and their number.
    found, total = _decode(path, frozenset(pick(expected)) if expected else frozenset(), None)
    if not total:
        raise MediaError(str(path), found="no frames", expected=_EXPECTED)
    return read_frames(path, pick(total)) if total != expected else [found[index] for index in pick(total)]


def read_frames(path: Path, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Decode the frames at ``indices`` (0 is the first shown), read-only uint8 RGB ``[H, W, 3]``; an index may repeat.

    A frame is turned upright if the file asks players to turn it, as phones' files do.

    Raises:
        MissingPackageError: PyAV is not installed.
        FileAccessError: no such file.
        MediaError: not a video, damaged, or shorter than an index.
    """
    wanted = frozenset(indices)
    found, _ = _decode(path, wanted, max(indices))
    if missing := sorted(wanted - found.keys()):
        raise MediaError(str(path), found=f"no frame {missing[0]}", expected=_EXPECTED)
    return [found[index] for index in indices]


def _decode(path: Path, wanted: frozenset[int], last: int | None) -> tuple[dict[int, NDArray[np.uint8]], int]:
    """Return frames by index, and the number of decoded frames; ``last`` is the index after which to stop."""
    found: dict[int, NDArray[np.uint8]] = {}
    total = 0
    with _opened(path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            total = index + 1
            if index in wanted:
                array = _upright(frame.to_ndarray(format="rgb24"), frame)
                array.setflags(write=False)
                found[index] = array
            if index == last:
                break
    return found, total


def _packets(container: Any) -> int:
    return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size and not packet.is_discard)


def _upright(array: NDArray[np.uint8], frame: Any) -> NDArray[np.uint8]:
    """Apply a frame's display matrix: quarter turns and mirrors, the nearest ones of another angle."""
    import numpy as np

    data = next((bytes(side) for side in frame.side_data if getattr(side.type, "name", "") == "DISPLAYMATRIX"), b"")
    if len(data) != _MATRIX_BYTES:
        return array
    # The pixel in column i and row j is shown in column a * i + c * j and row b * i + d * j (ISO 14496-12).
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(data, "=i4"))
    if abs(b) + abs(c) > abs(a) + abs(d):
        a, d, array = c, b, array.transpose(1, 0, 2)
    array = array[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(array)


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

"""The dashboard: its text fits, it never draws by itself, and plain output stays plain."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable

import pytest
from rich.console import Console

from unfuse.records import SampleRecord, StageTime
from unfuse.report import LiveView

HOSTILE = "\x1b[31mred\x1b[0m\r\n[bold]x[/bold] \u202eevil \x07"


class Terminal(io.StringIO):
    """A file that says it is one."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Two seconds a look."""

    seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 2
        return self.seconds


def view(width: int = 80, height: int = 24, *, file: io.StringIO | None = None, **how) -> tuple[LiveView, io.StringIO]:
    file = Terminal() if file is None else file
    console = Console(file=file, width=width, height=height, force_terminal=file.isatty(), _environ={"TERM": "xterm"})
    return LiveView(console, **{"samples": 4, "now": Clock(), **how}), file


def drawn(live: LiveView, width: int = 80, height: int = 24) -> list[str]:
    """Text that it would draw now."""
    file = io.StringIO()
    Console(file=file, width=width, height=height, color_system=None).print(live.get_renderable())
    return file.getvalue().splitlines()


def test_it_says_how_far_a_run_is(make_record: Callable[..., SampleRecord]) -> None:
    live, _ = view(parts=2, repeats_s=15)
    live.begin("demo", "decoupled")
    assert any("0 of 4 samples" in row and row.endswith("first sample") for row in drawn(live))
    live.show(0, make_record(warmup=True, ms=(1e6,) * 5))
    assert any(row.endswith("warming up") for row in drawn(live))
    live.show(0, make_record("a", ms=(1, 2, 3, 4, 10), output_tokens=5))
    live.show(1, make_record("b", ms=(3, 2, 3, 4, 20), output_tokens=7, question="What moves?", text="A disc."))
    live.show(2, SampleRecord(sample_id="c", status="failed", error="out of memory"))
    rows = drawn(live)
    assert rows[0].startswith("demo: decoupled (run 1 of 2)")
    assert "3 of 4 samples" in rows[1]
    assert rows[1].endswith("about 0:00:02 left")
    table = {row[:14].strip(): row[14:].split() for row in rows[3:10]}
    assert table["load"] == ["2.00", "3.00", "7.7", "%"]
    assert table["decode"] == ["15.00", "20.00", "57.7", "%"]
    assert table["sum of stages"] == ["26.00", "32.00", "100.0", "%"], "the cold repeat is in no median"
    assert "2 measured, 1 failed, 1 warm-ups; 38.5 samples/s, 230.8 output tokens/s" in rows
    assert rows[-1].strip() == "FAILED: out of memory"
    live.show(3, make_record("d", question="What moves?", text="A disc."))
    assert [row.strip() for row in drawn(live)[-2:]] == ["Sample 3: What moves?", "A disc."]
    assert any(row.endswith("now repeats of one sample, up to 15 s") for row in drawn(live))
    live.begin("other", "hooked")
    assert drawn(live)[0].startswith("other: hooked (run 2 of 2)")
    assert not any("15.00" in row for row in drawn(live)), "medians of another part"


@pytest.mark.parametrize("protocol", ["decoupled", "fused", "hooked", "reencode"])
@pytest.mark.parametrize(
    ("width", "height"), [(80, 24), (200, 50), (80, 12), (40, 12), (20, 5), (8, 3), (1, 2), (80, 1)]
)
def test_it_fits(width: int, height: int, protocol: str) -> None:
    from unfuse.records import PROTOCOL_STAGES

    live, _ = view(width, height, parts=2)
    live.begin("a long name of a model " * 9, protocol)
    stages = {stage: StageTime(host_ms=12345.678) for stage in PROTOCOL_STAGES[protocol]}
    live.show(
        0, SampleRecord(sample_id="a", status="ok", stages=stages, text="漢字 words " * 99, question="why? " * 99)
    )
    rows = drawn(live, width, height)
    assert len(rows) < height or not rows
    assert all(Console(width=width).measure(row).maximum <= width for row in rows)


def test_a_strangers_text_moves_no_cursor(make_record: Callable[..., SampleRecord]) -> None:
    live, _ = view()
    live.begin(HOSTILE, "decoupled")
    live.show(0, make_record(question=HOSTILE, text=HOSTILE))
    assert all(row.isprintable() for row in drawn(live))
    assert any("[bold]x[/bold]" in row for row in drawn(live))


def test_lines_stay_and_the_dashboard_goes(make_record: Callable[..., SampleRecord]) -> None:
    live, file = view()
    with live:
        live.begin("demo", "decoupled")
        live.show(0, make_record(), "Sample 0: " + "x" * 200, "  A: a street")
    out = file.getvalue()
    assert "Sample 0: " + "x" * 200 + "\n  A: a street\n" in out, "in one piece, however long"
    assert "median ms" in out
    assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l"), "the cursor is back"
    after = out[out.rindex("median ms") :]
    assert after.count("\x1b[2K") >= 10, "its rows are wiped"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_run_leaves_the_terminal_sane(error: type[BaseException]) -> None:
    live, file = view()
    live.begin("demo", "decoupled")
    with pytest.raises(error), live:
        raise error
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"FORCE_COLOR": "1", "TERM": "xterm"}])
def test_plain_lines_where_nothing_can_be_drawn(
    make_record: Callable[..., SampleRecord], environment: dict[str, str]
) -> None:
    """On a dumb terminal, and in a file in spite of a forced colour."""
    file = Terminal() if environment["TERM"] == "dumb" else io.StringIO()
    live = LiveView(Console(file=file, width=20, _environ=environment), samples=4)
    with live:
        live.begin("demo", "decoupled")
        live.show(0, make_record(warmup=True))
        live.show(0, make_record(), "Sample 0: " + "x" * 200)
    assert file.getvalue() == "Sample 0: " + "x" * 200 + "\n"


def test_it_draws_only_when_called(make_record: Callable[..., SampleRecord]) -> None:
    """No thread of its own, and one drawing a record."""
    before = set(threading.enumerate())
    live, file = view()
    with live:
        live.begin("demo", "decoupled")
        assert set(threading.enumerate()) == before
        written = file.tell()
        threading.Event().wait(0.4)
        assert file.tell() == written
        live.show(0, make_record(), "Sample 0")
    assert len(re.findall("median ms", file.getvalue())) <= 5

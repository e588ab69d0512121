"""Text files as common tools write them: comments, names, separators, marks, truth values and units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.errors import EventFileError, EventStreamError, UnfuseError
from unfuse.events import TimeWindow, read_events

ROWS = [(i * 500, i % 50, i % 40, i % 2) for i in range(120)]


def lines(form="{t} {x} {y} {p}\n", rows=ROWS):
    return "".join(
        form.format(t=t, s=t / 1e6, ns=t * 1000, ms=t / 1000, x=x, y=y, p=p, b=bool(p)) for t, x, y, p in rows
    )


def check(path, size=None):
    stream = read_events(path)
    assert stream.t.tolist() == [row[0] for row in ROWS]
    assert stream.x.tolist() == [row[1] for row in ROWS]
    assert stream.y.tolist() == [row[2] for row in ROWS]
    assert stream.p.tolist() == [row[3] for row in ROWS]
    assert stream.sensor_size == size
    return stream


FILES = {
    "plain": lines(),
    "jAER comments": "#!events.txt\n# Format is time (float s), x, y, polarity\n" + lines("{s} {x} {y} {p}\n"),
    "percent comments": "% made by a tool\n\n% on Monday\n" + lines(),
    "slashes": "// x y\n" + lines(),
    "comments between": lines(rows=ROWS[:50]) + "# half\n% half\n\n// half\n" + lines(rows=ROWS[50:]),
    "comment at the end of a line": lines("{t} {x} {y} {p} # an event\n"),
    "numpy header": "# x y p t\n" + lines("{x} {y} {p} {t}\n"),
    "bare Metavision": lines("{x},{y},{p},{t}\n"),
    "spaces after commas": lines("{x}, {y}, {p}, {t}\n"),
    "trailing commas": lines("{x},{y},{p},{t},\n"),
    "semicolons": "x;y;p;t\n" + lines("{x};{y};{p};{t}\n"),
    "tabs": "timestamp\tx\ty\tpolarity\n" + lines("{t}\t{x}\t{y}\t{p}\n"),
    "bars": "t|x|y|p\n" + lines("{t}|{x}|{y}|{p}\n"),
    "pandas": ",x,y,polarity,timestamp\n" + lines("7,{x},{y},{p},{t}\n"),
    "further columns": "frame,t,x,y,p,label\n" + lines("3,{t},{x},{y},{p},car\n"),
    "quoted": '"t","x","y","p"\n' + lines('"{t}","{x}","{y}","{p}"\n'),
    "truth values": "x,y,t,p\n" + lines("{x},{y},{t},{b}\n"),
    "truth values without names": lines("{t} {x} {y} {b}\n"),
    "mark": "\ufefft,x,y,p\n" + lines("{t},{x},{y},{p}\n"),
    "mark and comment": "\ufeff# events\r\n" + lines("{t},{x},{y},{p}\r\n"),
    "old Mac": lines().replace("\n", "\r"),
    "no last line end": lines().rstrip("\n"),
    "leading blank lines": "\n\n  \n" + lines(),
    "names in capitals": "Timestamp,X,Y,Polarity\n" + lines("{t},{x},{y},{p}\n"),
    "units: us": "timestamp_us,x,y,polarity\n" + lines("{t},{x},{y},{p}\n"),
    "units: [us]": "x [px], y [px], time [us], pol\n" + lines("{x},{y},{t},{p}\n"),
    "units: (µs)": "t (µs);x;y;p\n" + lines("{t};{x};{y};{p}\n"),
    "units: ns": "t_ns,x,y,p\n" + lines("{ns},{x},{y},{p}\n"),
    "units: ms": "time_ms x y p\n" + lines("{ms} {x} {y} {p}\n"),
    "units: s": "x,y,t_s,p\n" + lines("{x},{y},{s},{p}\n"),
    "seconds": lines("{s:.6f} {x} {y} {p}\n"),
    "seconds with exponents": lines("{s:e} {x} {y} {p}\n"),
    "coordinates with a point": lines("{t} {x}.0 {y}.0 {p}\n"),
    "every number a float": lines("{t}.0 {x}.0 {y}.0 {p}.0\n"),
    "numpy.savetxt's default": lines("{t:.18e} {x:.18e} {y:.18e} {p:.18e}\n"),
    "decimal commas": "t;x;y;p\n" + lines("{s:.6f};{x};{y};{p}\n").replace(".", ","),
    "decimal commas and tabs": lines("{s:.6f}\t{x}\t{y}\t{p}\n").replace(".", ","),
    "-1 and +1": lines().replace(" 1\n", " +1\n").replace(" 0\n", " -1\n"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file(tmp_path, name):
    path = tmp_path / "events.txt"
    path.write_bytes(FILES[name].encode())
    check(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "events.txt"
    path.write_bytes(("t [µs],x,y,p\n" + lines("{t},{x},{y},{p}\n")).encode(encoding))
    check(path)


@pytest.mark.parametrize(
    "head",
    [
        "%geometry:346,260\n",
        "346 260\n",
        "# width: 346 height: 260\n",
        "% Width 346\n% Height 260\n",
        "# geometry 346x260\n",
    ],
)
def test_the_size_of_the_sensor(tmp_path, head):
    path = tmp_path / "events.csv"
    path.write_text(head + lines("{x},{y},{p},{t}\n"))
    if head.startswith("% Width"):  # two comments; the size needs both in one line
        check(path)
    else:
        check(path, (346, 260))


def test_the_unit_is_said_unless_the_file_says_it(tmp_path):
    path = tmp_path / "a"
    path.write_text(lines())
    (note,) = read_events(path).notes
    assert note.startswith("times read as microseconds: whole numbers; --time-unit")
    path.write_text(lines("{s} {x} {y} {p}\n"))
    assert "seconds: numbers with fractions" in read_events(path).notes[0]
    assert read_events(path, window=TimeWindow(start_us=0, stop_us=5000)).notes == read_events(path).notes
    assert read_events(path).slice(0, 3).notes
    path.write_text("t_us x y p\n" + lines())
    assert read_events(path).notes == ()


@pytest.mark.parametrize(("unit", "factor"), [("s", 1e6), ("ms", 1e3), ("us", 1), ("ns", 1e-3)])
def test_a_unit_that_is_stated(tmp_path, unit, factor):
    path = tmp_path / "a"
    path.write_text(lines(rows=ROWS[:3]))
    stream = read_events(path, time_unit=unit)
    assert stream.t.tolist() == [round(row[0] * factor) for row in ROWS[:3]]
    assert stream.notes == ()
    path.write_text("t_us x y p\n" + lines(rows=ROWS[:3]))
    assert read_events(path, time_unit=unit).t.tolist() == stream.t.tolist()


def test_a_fraction_in_a_late_line(tmp_path, monkeypatch):
    """The first table decides; a later line of the other kind is no silent change of the unit."""
    monkeypatch.setattr("unfuse.events.readers.text._LINES", 100)
    path = tmp_path / "a"
    path.write_text(lines(rows=ROWS[:110]) + "55000.5 1 2 1\n")
    with pytest.raises(EventStreamError, match="t: found a fraction after 100 lines of whole numbers"):
        read_events(path)
    assert read_events(path, time_unit="us").t[-1] == 55000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("t,x,y,value\n1,2,3,1\n", "line 1: found no column p but the unknown 'value'"),
        ("# hello\na,b,c,d\n1,2,3,1\n", "line 2: found no column x, y, t, p but the unknown 'a', 'b'"),
        ("t,timestamp_us,ts,x,y,p\n" + "1,1,1,2,3,1\n", None),
        ("time,ts,x,y,p\n1,1,2,3,1\n", "both 'time' and 'ts'"),
        ("t,x,y,p\n1,2,3\n", "3 numbers, expected 4"),
        ("1,2,3,1,5\n", "5 numbers a line"),
        ("1 2 3 1\n1 2 3 1 5\n", "no event"),
        ("t x y p\nq w e r\n", "line 2: found 'q w e r'"),
        ("# 1\n" * 20_000, "over 10000 lines"),
        ('{"a": 1}\n', "line 1"),
        ("<html>404</html>\n", "line 1"),
    ],
)
def test_lines_that_are_not_known(tmp_path, data, words):
    path = tmp_path / "a"
    path.write_text(data)
    if words is None:
        assert len(read_events(path)) == 1
        return
    with pytest.raises(EventFileError, match=words) as caught:
        read_events(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["{t}.5 {x} {y} {p}\n", "{s:.0f} {x} {y} {p}\n"])
def test_a_rate_that_no_sensor_has(tmp_path, form):
    path = tmp_path / "a"
    rows = ROWS if ".5" in form else [(i * 10, 1, 1, 1) for i in range(500_000)]
    path.write_text("t x y p\n" + lines(form, rows))
    if ".5" in form:
        with pytest.raises(EventStreamError, match="events per second in seconds.*--time-unit"):
            read_events(path)
        assert read_events(path, time_unit="us").t[-1] == round(ROWS[-1][0] + 0.5)
    else:
        with pytest.raises(EventStreamError, match="events per second in microseconds"):
            read_events(path)


@examples(60)
@given(st.binary(max_size=60) | st.text('0123456789 ,;.\ntxyp#%-e"TrueFals', max_size=60).map(str.encode))
def test_any_bytes_are_events_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(data)
    try:
        assert len(read_events(path)) > 0
    except UnfuseError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_numbers_of_nanoseconds_since_1970(tmp_path):
    path = tmp_path / "a"
    start = 1_600_000_000_000_000_000
    np.savetxt(path, [[start + t * 1000, x, y, p] for t, x, y, p in ROWS], fmt="%d", header="t x y p", comments="")
    stream = read_events(path)
    assert abs(int(stream.t[0]) - start // 1000) <= 1
    assert "nanoseconds" in stream.notes[0]

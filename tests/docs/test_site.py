"""The built site: made without a warning, every link inside it leads somewhere, nothing comes from elsewhere."""

from __future__ import annotations

import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import unfuse
import unfuse.errors
import unfuse.events
import unfuse.models.eventgpt
import unfuse.records.schema
from tests.started import Started

ROOT = Path(__file__).parents[2]
ELSEWHERE = re.compile(r"url\(['\"]?(?:https?:)?//[^)]*|@import[^;]*//[^;]*")
VERBS = ("load", "preprocess", "encode", "prefill", "decode", "generate", "stream")
RUNS = ROOT / "benchmarks" / "h200-7b-comparison"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The one that CI has just built, or one of its own."""
    if built := os.environ.get("UNFUSE_SITE"):
        return Path(built).absolute()
    out = tmp_path_factory.mktemp("site")
    process = Started(build, str(out), folder=tmp_path_factory.mktemp("printed"))
    assert process.wait() == 0, process.errors[-3000:]
    return out


def build(out):
    from sphinx.cmd.build import build_main

    os.chdir(ROOT)
    sys.exit(build_main(["-W", "--keep-going", "-q", "-c", "docs", ".", out]))


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.update(value for name, value in attrs if name in ("id", "name") and value)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag != "a" and (target := given.get("src") or given.get("href")):
            self.loaded.append(target)


def broken_links(folder):
    """(page, link) of every one that leads to no file, or to no anchor of it."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                found.append((path.relative_to(folder).as_posix(), link))
    return found


def fetched(folder):
    """(file, address) of everything that a browser would load from another machine."""
    found = []
    for path in folder.rglob("*.html"):
        loaded = _Page(path.read_text(encoding="utf-8")).loaded
        found += [(path.name, link) for link in loaded if urlsplit(link).netloc]
    for path in folder.rglob("*.css"):
        found += [(path.name, address) for address in ELSEWHERE.findall(path.read_text(encoding="utf-8"))]
    return found


def test_every_link_inside_leads_somewhere(site):
    assert len(list(site.rglob("*.html"))) > 30
    assert broken_links(site) == []


def test_nothing_comes_from_elsewhere(site):
    assert fetched(site) == []


def test_the_checks_of_links_can_fail(tmp_path):
    (tmp_path / "a.html").write_text(
        '<link href="https://fonts.example/x.css"><a href="b.html">good</a><a href="b.html#here">good</a>'
        '<a href="b.html#nowhere">no anchor</a><a href="c.html">no page</a><img src="d.png"><a href="https://e.example">out</a>'
    )
    (tmp_path / "b.html").write_text('<p id="here">')
    (tmp_path / "s.css").write_text("p { background: url('//cdn.example/x.png') }")
    assert {link for _, link in broken_links(tmp_path)} == {"b.html#nowhere", "c.html", "d.png"}
    assert len(fetched(tmp_path)) == 2


def test_every_public_name_has_its_entry(site):
    from sphinx.util.inventory import InventoryFile

    found = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    names = {name for kind, objects in found.items() if kind.startswith("py:") for name in objects}
    wanted = {f"unfuse.{name}" for name in unfuse.__all__}
    for module in (unfuse.events, unfuse.models.eventgpt, unfuse.records.schema):
        wanted |= {f"{module.__name__}.{name}" for name in module.__all__}
    wanted |= {f"unfuse.errors.{name}" for name, value in vars(unfuse.errors).items() if isinstance(value, type)}
    wanted |= {f"unfuse.staged_model.StagedModel.{verb}" for verb in VERBS}
    # Of another module, where it has its entry.
    wanted = wanted - {"unfuse.records.schema.STAGES"} | {"unfuse.stages.STAGES"}
    assert wanted - names == set()


def test_the_bars_are_the_records(site):
    text = (site / "docs" / "index.html").read_text(encoding="utf-8")
    parts = json.loads((RUNS / "summary.json").read_text())["parts"]
    decoupled = [part for part in parts if part["protocol"] == "decoupled"]
    assert len(decoupled) == 3
    for part in decoupled:
        label = ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in part["stages_host_ms"].items())
        assert f"{part['model']}: {label}" in text


def test_the_front_page_has_the_table_s_number():
    table = (ROOT / "benchmarks" / "h200-stage4" / "table.md").read_text()
    ours = re.search(r"^\| decode, a token \| ([\d.]+) ms", table, re.MULTILINE)
    assert f"in {float(ours[1]):.1f} ms each" in (ROOT / "docs" / "index.md").read_text()


def test_the_report_is_of_its_run(site):
    page = (site / "docs" / "real-run.html").read_text(encoding="utf-8")
    assert re.search(r'<iframe[^>]* src="real-run-report.html" title="[^"]+"', page)
    text = (site / "docs" / "real-run-report.html").read_text(encoding="utf-8")
    summary = json.loads((RUNS / "01-random-eventgpt-7b-decoupled" / "summary.json").read_text())
    assert summary["verdict"]["word"] in text
    for stage, found in summary["stages_host"].items():
        assert f"{found['p50']:.2f}" in text, stage


def test_the_root_leads_to_the_pages(site):
    assert "url=docs/index.html" in (site / "index.html").read_text()

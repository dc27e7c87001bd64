"""Pictures behind links: not without being asked, once, within bounds, and counted if lost."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.data.files import GREEN, RED, color_of, png, write_jsonl
from unigame.data import Chat, build_dataset
from unigame.data.links import NO_PICTURE, UNASKED, Links, NotFetched
from unigame.errors import UserError


class Pictures(BaseHTTPRequestHandler):
    """What a site answers, by path; ``asked`` are the paths in order."""

    def do_GET(self):
        self.server.asked.append(self.path)
        body = {"/red.png": png(RED), "/green.png": png(GREEN), "/page": b"<html>"}.get(self.path)
        if self.path == "/slow":
            self.server.closing.wait(20)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/red.png")
            self.end_headers()
            return
        body = png(RED)[:40] if self.path == "/cut" else body
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(99 if self.path == "/cut" else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Tests are quiet."""


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    server.asked, server.closing = [], threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def link(site, path):
    return f"http://127.0.0.1:{site.server_port}{path}"


def asked(site, *paths):
    said = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "red"}]
    return [{"images": [link(site, path)], "messages": said} for path in paths]


def test_links_are_fetched_once_and_lost_ones_are_counted(site, tmp_path):
    paths = ["/red.png", "/gone.png", "/page", "/gone.png", "/moved", "/cut", "/red.png"]
    table = write_jsonl(tmp_path / "t.jsonl", asked(site, *paths))
    source = {"type": "chat", "path": str(table), "cache_dir": str(tmp_path / "cache")}
    data = build_dataset([{**source, "fetch": True}])
    assert [color_of(row["image"]) for row in data] == ["red"] * 3
    assert data.skips.counts() == {NO_PICTURE: 4}
    assert site.asked == ["/red.png", "/gone.png", "/page", "/moved", "/red.png", "/cut"]
    again = build_dataset([{**source, "fetch": True, "limit": 1}])
    assert len(again) == 1 and len(site.asked) == 6


def test_without_fetch_nothing_is_asked_for(site, tmp_path):
    table = write_jsonl(tmp_path / "t.jsonl", asked(site, "/red.png"))
    with pytest.raises(UserError, match=UNASKED):
        Chat(table)
    assert not site.asked


def test_time_and_size_have_bounds(site, tmp_path):
    quick = Links(True, tmp_path, seconds=0.2)
    with pytest.raises(NotFetched, match="timed out"):
        quick(link(site, "/slow"))
    small = Links(True, tmp_path, most_bytes=50)
    with pytest.raises(NotFetched, match="more than 50 bytes"):
        small(link(site, "/green.png"))
    assert small("a.png") == "a.png"
    assert not list(tmp_path.rglob("*.png"))

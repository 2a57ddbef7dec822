"""Downloads from a server on this machine: checked, resumed, and with directions when there is none."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from egnn_md.data.download import Source, fetch
from egnn_md.data.frames import DataError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """/whole gives all, or what a Range asks for; /broken promises all and gives half; /plain ignores Range."""

    asked: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and self.path != "/plain" else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : len(CONTENT) // 2] if self.path == "/broken" else CONTENT[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_file_arrives_whole_and_is_not_fetched_twice(server: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    source = Source(f"{server}/whole", "data.bin", len(CONTENT), MD5)
    for _ in range(2):
        path = fetch(source, tmp_path, lambda *progress: seen.append(progress))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("data.bin", len(CONTENT), len(CONTENT))
    assert Handler.asked == [None]


@pytest.mark.parametrize("place", ["whole", "plain"])
def test_a_broken_download_goes_on(server: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"could not fetch.*put it at {tmp_path}"):
        fetch(Source(f"{server}/broken", "data.bin", len(CONTENT), MD5), tmp_path)
    assert not (tmp_path / "data.bin").exists()
    half = (tmp_path / "data.bin.part").stat().st_size
    assert 0 < half < len(CONTENT)
    assert fetch(Source(f"{server}/{place}", "data.bin", len(CONTENT), MD5), tmp_path).read_bytes() == CONTENT
    assert Handler.asked[-1] == f"bytes={half}-"


def test_wrong_bytes_are_refused(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="damaged"):
        fetch(Source(f"{server}/whole", "data.bin", len(CONTENT), "0" * 32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_it_says_what_to_do_by_hand(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put it at .*data\.bin"):
        fetch(Source("http://127.0.0.1:9/data.bin", "data.bin"), tmp_path)

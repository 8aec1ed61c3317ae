"""Shards of a web server and of fsspec's file systems: copied once, within a budget; errors are one sentence."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest

from data.shards.make_shards import opened, pixels, shards
from sfumato.data.containers import downloads
from sfumato.errors import UserError


class Server:
    """Serves a folder and notes what was asked for."""

    def __init__(self, root: Path) -> None:
        self.asked: list[str] = []
        self.cut_off = False
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if not outer.cut_off:
                    return super().do_GET()
                content = (root / self.path.lstrip("/")).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:100])
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "WAITS", (0.0,))
    shards(tmp_path / "there", [2, 3, 2])
    made = Server(tmp_path / "there")
    yield made
    made.close()


def test_shards_are_copied_once_and_their_indices_kept(server: Server, tmp_path: Path) -> None:
    pattern, cache = f"{server.address}/{{00000..00002}}.tar", tmp_path / "cache"
    found = opened(pattern, cache)
    near = opened(tmp_path / "there")
    assert [pixels(found[i]) for i in range(7)] == [pixels(near[i]) for i in range(7)]
    assert sorted(server.asked) == ["/00000.tar", "/00001.tar", "/00002.tar"]
    for copy in cache.glob("copy-*"):
        copy.unlink()
    again = opened(pattern, cache)
    assert len(server.asked) == 3, "the index says what is there"
    assert pixels(again[3]) == pixels(near[3])
    assert server.asked[3:] == ["/00001.tar"]
    assert again.fingerprint() == found.fingerprint()


def test_the_longest_unused_copies_make_room(server: Server, tmp_path: Path) -> None:
    size = (tmp_path / "there" / "00000.tar").stat().st_size
    found = opened(f"{server.address}/{{00000..00002}}.tar", tmp_path / "cache", keep_gib=2.5 * size / 2**30)
    assert len(list((tmp_path / "cache").glob("copy-*"))) <= 2
    near = opened(tmp_path / "there")
    assert [pixels(found[i]) for i in range(7)] == [pixels(near[i]) for i in range(7)]


def test_files_that_are_fetched_at_the_same_time_keep_within_the_budget(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (tmp_path / "there" / "00000.tar").stat().st_size
    made, together = downloads.Downloads(tmp_path / "copies", int(2.5 * size)), Barrier(3)
    make_room = made._make_room

    def all_before_the_first_is_there(bytes_: int) -> None:
        make_room(bytes_)
        with suppress(BrokenBarrierError):
            together.wait(1)

    monkeypatch.setattr(made, "_make_room", all_before_the_first_is_there)
    addresses = [f"{server.address}/0000{i}.tar" for i in range(3)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda address: made.path(address, made.key(address)), addresses))
    assert len(list((tmp_path / "copies").glob("copy-*"))) == 2


def test_what_a_server_refuses_or_cuts_off_is_one_sentence(server: Server, tmp_path: Path) -> None:
    found = opened(f"{server.address}/{{00000..00003}}.tar", most_damaged=1)
    assert len(found) == 7
    assert any("there is no such file" in note for note in found.notes)
    server.cut_off = True
    with pytest.raises(UserError, match=r"1 of 1 shards cannot be read.*only 100 of \d+ bytes arrived"):
        opened(f"{server.address}/00000.tar")
    server.close()
    with pytest.raises(UserError, match=r"1 of 1 shards cannot be read.*answers: "):
        opened(f"{server.address}/00001.tar", tmp_path / "cache")
    with pytest.raises(UserError, match="cannot be listed"):
        opened(f"{server.address}/")


def test_file_systems_of_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    shards(tmp_path, [2, 1])
    for path in tmp_path.glob("*.tar"):
        memory.pipe(f"/sfumato-test/{path.name}", path.read_bytes())
    for place in ("memory://sfumato-test/", "memory://sfumato-test/*.tar", "memory://sfumato-test/{00000..00001}.tar"):
        assert len(opened(place, tmp_path / "cache")) == 3
    with pytest.raises(UserError, match=r"data.path nosuch://x.tar cannot be read: Protocol not known"):
        opened("nosuch://x.tar")

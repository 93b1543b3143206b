"""The commands in README.md and docs/ do what the pages say, on a copy of the project with a small experiment."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image, ImageDraw

from live import CHECKOUT
from pipeline import BIN, commit, edit, environment, fresh_copy, metrics, run, trainings

PAGES = {
    path.relative_to(CHECKOUT).as_posix(): path.read_text()
    for path in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
TYPED_ELSEWHERE = {"docs/team.md"}  # by test_team.py, on servers of its own


def commands_of(page: str) -> Iterator[str]:
    """Yield the commands of a page's ``sh`` blocks, but not of a block below ``<!-- needs ... -->``."""
    for needs, block in re.findall(r"(<!-- needs .*? -->\n+)?^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        if not needs:
            yield from filter(None, (line.partition("#")[0].strip() for line in block.splitlines()))


# each command once: README first, then the pages by name
COMMANDS = list(
    dict.fromkeys(
        command for name, text in PAGES.items() if name not in TYPED_ELSEWHERE for command in commands_of(text)
    )
)
SERVE = "mlflow models serve -m models:/bestepoch-mnist@champion --env-manager local --port 5001"
SERVERS = {
    "make ui": "http://127.0.0.1:{port}/health",
    "make tensorboard": "http://127.0.0.1:{port}/",
    SERVE: "http://127.0.0.1:{port}/ping",
}
# the whole suite inside one of its tests would never end; that it is what `make test` starts is looked at
NOT_HERE = {"make test"}

pytestmark = pytest.mark.xdist_group("readme")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fresh_copy(tmp_path_factory.mktemp("readme"))
    edit(folder / "params.yaml", "data: mnist ", "data: mnist_sample ")
    edit(folder / "params.yaml", "model: cnn ", "model: mlp ")
    edit(folder / "params.yaml", "epochs: 6 ", "epochs: 1 ")
    commit(folder)
    # .venv as make would find it once it is installed
    (folder / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / part).symlink_to(BIN.parent / part)
    (folder / ".venv/.installed").touch()
    return folder


def test_the_pages_name_each_way_in() -> None:
    for way in ("make repro", "make test", "dvc repro", "python -m bestepoch.train -m", "make ui", "mlflow run ."):
        assert any(command.startswith(way) for command in COMMANDS), way


def test_a_block_that_needs_more_than_this_machine_is_not_run() -> None:
    page = (
        "```sh\na  # says a\n\nb\n```\n<!-- needs a cluster -->\n```sh\nc\n```\n```console\n$ d\n```\n```sh\ne\n```\n"
    )
    assert list(commands_of(page)) == ["a", "b", "e"]


def test_the_commands_run_in_the_order_of_the_pages(project: Path) -> None:
    for command in COMMANDS:
        if command in NOT_HERE or command in SERVERS:
            continue
        if "image.png" in command:
            picture = Image.new("L", (300, 400), 255)
            ImageDraw.Draw(picture).line([(200, 80), (190, 300)], 0, 20)
            picture.save(project / "image.png")
        run(project, *shlex.split(with_names(command, project)))
        if command.startswith("dvc exp run --queue"):
            assert "Queued" in run(project, "dvc", "queue", "status")
            run(project, "dvc", "queue", "remove", "--all")
        if command.startswith("dvc exp run -S"):
            run(project, "git", "checkout", "-q", ".")
    assert metrics(project)["test_accuracy"] > 0.5
    assert (project / "image.28x28.png").is_file()
    check_what_was_trained(project)


def check_what_was_trained(project: Path) -> None:
    """The commands have made these runs, studies and presets, and no others; the searches on the page find runs."""
    known = [r for r in trainings(project) if "optimizer.lr" in r.data.params]  # no run of a sweep or study itself
    keys = ("optimizer", "optimizer.lr", "train.epochs", "seed", "split.fold")
    trained: dict[str, list[tuple[str | None, ...]]] = {}
    for r in known:
        trained.setdefault(r.data.tags.get("sweep", ""), []).append(tuple(r.data.params.get(key) for key in keys))
    assert sorted(trained.pop("")) == [
        ("adamw", "0.005", "3", "0", None),  # the shell
        ("adamw", "0.01", "1", "0", None),  # dvc repro
        ("sgd", "0.05", "1", "0", None),  # mlflow run -e train
        ("sgd", "0.05", "3", "0", None),  # dvc exp run
    ]
    assert sorted(map(set, trained.values()), key=len) == [
        {("adamw", "0.01", "1", str(seed), None) for seed in (2, 3)},  # mlflow run -e sweep
        {(name, lr, "1", str(seed), None) for name, lr in (("adamw", "0.01"), ("sgd", "0.05")) for seed in (0, 1)},
        {("adamw", "0.01", "1", "0", str(fold)) for fold in range(5)},  # cross-validation
    ]
    assert len(known) == 4 + 2 + 4 + 5
    assert all(r.info.status == "FINISHED" for r in known)
    assert len(list((project / "runs/sweeps").glob("*/study/study.json"))) == 3
    assert len(list((project / "runs/studies").glob("*/study.json"))) == 1
    assert len(list((project / "conf/experiment").glob("sgd-adamw-*.yaml"))) == 1, "promoted"
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    number = known[0].info.experiment_id
    first, second = re.findall(r"^(?:params|metrics|tags)\..*$", PAGES["docs/tracking.md"], re.MULTILINE)
    found = client.search_runs([number], first.replace("0.99", "0.5"))
    assert found
    assert all(r.data.params["optimizer"] == "adamw" and r.data.metrics["test/accuracy"] > 0.5 for r in found)
    found = client.search_runs([number], second.replace("'50'", "'100'"))
    assert found
    assert all(r.data.params["train.batch_size"] == "100" for r in found)


def with_names(command: str, project: Path) -> str:
    """A command as a person would type it who wants the newest of what there is."""

    def newest(kind: str) -> list[str]:
        paths = sorted((project / "runs").glob(kind), key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.parent.name for path in paths]

    for named, kind, place in (
        ("sweeps/<name>", "sweeps/*/jobs.csv", 0),
        ("<name>", "*/run.json", 0),
        ("<one>", "*/run.json", 0),
        ("<another>", "*/run.json", 1),
    ):
        if named in command:
            command = command.replace(named, named.partition("<")[0] + newest(kind)[place])
    return command


@pytest.mark.parametrize("command", SERVERS)
def test_the_servers_answer_on_this_machine_alone(project: Path, command: str) -> None:
    assert command in COMMANDS
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if command == SERVE:  # of a champion, which is there when evaluation has run
        run(project, "dvc", "repro")
        typed = command.replace("mnist@", "mnist_sample@").replace("5001", str(port))
    else:
        typed = f"{command} PORT={port}"
    # one server may answer before another does, and what was started says where to look once all of them do
    with serving(project, typed, SERVERS[command].format(port=port), says=f"127.0.0.1:{port}"):
        pass


@contextlib.contextmanager
def serving(project: Path, command: str, url: str, says: str) -> Iterator[None]:
    """Once the address answers and the command has said ``says``; an error where one of them does not come."""
    log = project / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            shlex.split(command),
            cwd=project,
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=1).close()
                if says in log.read_text():
                    break
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
        else:
            raise AssertionError(f"{url} does not answer, or {says} is not said:\n{log.read_text()}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_make_test_runs_the_suite(project: Path) -> None:
    assert "-m pytest -n 2 --dist loadgroup\n" in run(project, "make", "-n", "test")  # all of it


def test_tests_of_a_group_share_a_process_and_with_it_what_they_stand_on(tmp_path: Path) -> None:
    """Or every process makes the fixtures of every file, and tests that stand on each other are torn apart."""
    text = """
import os, pytest
pytestmark = pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_alone(number):
    with open("processes", "a") as file:
        file.write(f"{os.getpid()} ")
"""
    (tmp_path / "test_one.py").write_text(text)
    run(tmp_path, *shlex.split("python -m pytest -n 2 --dist loadgroup -p no:cacheprovider"))
    processes = (tmp_path / "processes").read_text().split()
    assert len(processes) == 8 and len(set(processes)) == 1


def test_each_target_of_make_is_in_its_help(project: Path) -> None:
    shown = run(project, "make")
    targets = re.findall(r"^([a-z]+):", (project / "Makefile").read_text(), re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(rf"^  make {target}\s+\S", shown, re.MULTILINE), target


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 200


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("configuration", CHECKOUT / "docs/configuration.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_up_to_date() -> None:
    page = PAGES["docs/configuration.md"]
    assert load_generator().page(page) == page, "run: python docs/configuration.py"


def test_the_configuration_page_has_each_setting_with_its_value() -> None:
    def rows(values: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(values, dict):
            for name, value in values.items():
                yield from rows(value, f"{key}.{name}" if key else name)
        else:
            yield key, values

    page = PAGES["docs/configuration.md"]
    files = [CHECKOUT / "params.yaml", CHECKOUT / "conf/config.yaml"]
    groups = list(yaml.safe_load((CHECKOUT / "conf/config.yaml").read_text())["defaults"])
    names = [name for line in groups if isinstance(line, dict) for name in line if "/" not in name]
    of_options = [path for name in names for path in sorted((CHECKOUT / "conf" / name).glob("*.yaml"))]
    assert len(of_options) > 20
    for path in files + of_options:
        group = path.parent.name if path in of_options else ""
        for key, value in rows(yaml.safe_load(path.read_text()), group):
            if key.split(".")[0] in ("defaults", "hydra") or key in names:
                continue
            if group != "data" and key.endswith(".name") and key != "device.name":
                assert f"### `{group}={value}`\n" in page
                continue
            cells = re.findall(rf"^\| `{re.escape(key)}` \|.*\|(.*)\|(.+)\|$", page, re.MULTILINE)
            assert cells, f"{path.name}: {key}"
            assert all(meaning.strip() for _, meaning in cells), key
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert f"`{value}`" in [default.strip() for default, _ in cells], key


def headings(page: str) -> set[str]:
    """The anchors that both GitHub and the site give to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    found = set()
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        of_github = re.sub(r"[^\w\s-]", "", title.lower()).replace(" ", "-")
        if of_github == re.sub(r"[\s-]+", "-", of_github):  # the site makes one hyphen of several
            found.add(of_github)
    return found


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_points_to_is_there(name: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[name]):
        path, _, anchor = link.partition("#")
        target = ((CHECKOUT / name).parent / path).resolve() if path else CHECKOUT / name
        assert target.is_file(), link
        # the site has the files of docs/ and no others
        assert name == "README.md" or target.parent == CHECKOUT / "docs", link
        if anchor:
            assert anchor in headings(target.read_text()), link


def test_each_page_is_in_the_menu_of_the_site() -> None:
    menu = re.findall(r"^  - .*: (\S+\.md)$", (CHECKOUT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(menu) == sorted(Path(name).name for name in PAGES if name != "README.md")

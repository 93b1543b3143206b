"""docs/team.md, typed in its order: MLflow's server on PostgreSQL and S3 with users, and two members with DVC on S3."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import live
from pipeline import edit, environment, fresh_copy

sys.path.append(str(live.CHECKOUT / "benchmarks"))
import servers
from servers import serving, until_it_answers

PAGE = (live.CHECKOUT / "docs/team.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
DATABASES, START, MEMBER, WHERE, USE, REMOTE, KEYS, KEEP, TAKE, BACKUP, RESTORE = (
    t for kind, t in BLOCKS if kind == "sh"
)
SETTINGS, USERS, CREDENTIALS = (text for kind, text in BLOCKS if kind == "ini")
_, PROXY = (text for kind, text in BLOCKS if not kind)
# each with what has a meaning in an address; none may be in a file that a command writes
SECRETS = {name: f"se/{name}@cret-{name}" for name in ("database", "admin", "ada", "bob", "session", "bucket")}

pytestmark = [
    pytest.mark.skipif(servers.binaries() is None, reason="needs PostgreSQL: Debian's package, or initdb on the path"),
    pytest.mark.xdist_group("team"),
]


@dataclass(frozen=True)
class Team:
    """A server that runs, and where its parts are."""

    folder: Path
    database: servers.Postgres
    s3: str
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def typed(self, text: str) -> str:
        """Commands of the page as they are here: what the page calls port 5000 may be taken."""
        return text.replace("127.0.0.1:5000", f"127.0.0.1:{self.port}").replace("--port 5000", f"--port {self.port}")

    def member(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of someone with a home of their own."""
        service = {"AWS_ENDPOINT_URL": self.s3, "AWS_DEFAULT_REGION": "us-east-1"}
        return environment() | service | {"HOME": str(home), **more}

    def files(self, bucket: str) -> dict[str, bytes]:
        """What lies in a bucket."""
        client = bucketeer(self.s3)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def bucketeer(address: str) -> Any:
    """A client of the S3 server."""
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": SECRETS["bucket"], "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=address, **keys)


def shell(text: str, where: Path, env: dict[str, str], answers: str = "", code: int = 0) -> str:
    """What commands print. Without a terminal, so that what asks for a password reads ``answers``."""
    done = subprocess.run(
        ["bash", "-ec", text],
        cwd=where,
        env=env,
        input=answers,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        start_new_session=True,
    )
    assert done.returncode == code, f"{text}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("server")
    with contextlib.ExitStack() as stack:
        s3 = f"http://127.0.0.1:{(s3_port := live.free_port())}"
        moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)]
        buckets = stack.enter_context(serving(moto, folder, {**os.environ}, folder / "s3.log"))
        database = stack.enter_context(servers.postgres("fsync=off"))
        it = Team(folder, database, s3, live.free_port())
        shell(DATABASES, folder, environment() | database.environment(), answers=f"{SECRETS['database']}\n" * 2)
        values = {
            "PGPASSWORD": SECRETS["database"],
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRETS["bucket"],
            "AWS_ENDPOINT_URL": s3,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": SECRETS["session"],
            "MLFLOW_AUTH_ADMIN_PASSWORD": SECRETS["admin"],
        }
        settings = re.sub(
            r"^(\w+)=<.*>$", lambda line: f"{line[1]}={shlex.quote(values.pop(line[1]))}", SETTINGS, flags=re.M
        )
        assert not values, "the page asks for something else"
        (folder / "server.env").write_text(settings)
        (folder / "auth.ini").write_text(USERS)
        # the database is at a port of its own, and one process is enough for two members
        env = environment() | {"PGPORT": str(database.port), "MLFLOW_WORKERS": "1", "AWS_DEFAULT_REGION": "us-east-1"}
        command = ["bash", "-ec", f"{it.typed(START).rstrip()} {PROXY}"]
        server = stack.enter_context(serving(command, folder, env, folder / "mlflow.log"))
        until_it_answers(buckets, s3, folder / "s3.log")
        for bucket in ("team-mlflow", "team-dvc"):
            assert f"s3://{bucket}" in PAGE
            bucketeer(s3).create_bucket(Bucket=bucket)
        until_it_answers(server, f"{it.address}/health", folder / "mlflow.log")
        again = START.splitlines()[0]
        shell(f"{again}\n{it.typed(MEMBER)}", folder, env, answers=f"{SECRETS['ada']}\n")
        added = requests.post(  # as the command does it, which takes seconds
            f"{it.address}/api/2.0/mlflow/users/create",
            json={"username": "bob", "password": SECRETS["bob"]},
            auth=("admin", SECRETS["admin"]),
            timeout=60,
        )
        added.raise_for_status()
        yield it


@dataclass(frozen=True)
class Member:
    """Someone with a checkout, in the right environment."""

    checkout: Path
    env: dict[str, str]

    def type(self, text: str, code: int = 0, **more: str) -> str:
        return shell(text, self.checkout, self.env | more, code=code)


@pytest.fixture(scope="module")
def ada(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Member:
    """She has trained in the pipeline and in a sweep, and pushed."""
    home = tmp_path_factory.mktemp("ada")
    checkout = fresh_copy(home / "checkout")
    for old, new in (
        ("data: mnist ", "data: mnist_sample "),
        ("model: cnn ", "model: mlp "),
        ("epochs: 6 ", "epochs: 2 "),
    ):
        edit(checkout / "params.yaml", old, new)
    (home / ".mlflow").mkdir()
    (home / ".mlflow/credentials").write_text(CREDENTIALS.replace("<the password>", SECRETS["ada"]))
    it = Member(checkout, team.member(home))
    it.type("git commit -qam 'A small experiment'")
    keys = KEYS.replace("<key>", "key").replace("<secret>", SECRETS["bucket"])
    it.type("\n".join([team.typed(WHERE), USE, REMOTE, keys, KEEP]))
    return it


@pytest.fixture(scope="module")
def bob(team: Team, ada: Member, tmp_path_factory: pytest.TempPathFactory) -> Member:
    """He has cloned, and has everything by name and password in the environment."""
    home = tmp_path_factory.mktemp("bob")
    shell(f"git clone -q {ada.checkout} checkout", home, team.member(home))
    own = {"MLFLOW_TRACKING_URI": team.address, "MLFLOW_TRACKING_USERNAME": "bob"}
    it = Member(home / "checkout", team.member(home, **own, MLFLOW_TRACKING_PASSWORD=SECRETS["bob"]))
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRETS["bucket"]}
    it.type(TAKE, **keys)
    return it


@pytest.fixture
def client(team: Team, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow's own, as bob."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS["bob"])
    return MlflowClient(tracking_uri=team.address)


def held(client: MlflowClient, run: Path) -> Any:
    """The one run in the server that is of this folder; every point of its journal is there, once."""
    runs = live.mlflow_runs(client)
    (stored,) = [found for found in runs if Path(found.data.tags.get("folder", "")).name == run.name]
    points = live.mlflow_points(client, stored.info.run_id)
    journal = live.journal_points(run)
    assert journal["lr"]
    assert {key: points[key] for key in journal} == journal
    return stored


def test_the_pipelines_run_is_in_the_server_and_its_files_in_the_bucket(
    team: Team, ada: Member, client: MlflowClient
) -> None:
    stored = held(client, live.only_run(ada.checkout))
    assert stored.info.status == "FINISHED"
    assert 0 < stored.data.metrics["test/accuracy"] <= 1
    bucket = team.files("team-mlflow")
    place = f"{stored.info.experiment_id}/{stored.info.run_id}/artifacts"
    local = {path.name: path.read_bytes() for path in (ada.checkout / "results/evaluate").iterdir() if path.is_file()}
    assert {"report.html", "metrics.json", "model.pt"} <= set(local)
    assert {name: bucket[f"{place}/evaluate/{name}"] for name in local} == local
    assert f"{place}/config.yaml" in bucket
    assert any(re.search(r"/models/.*/artifacts/data/model\.pt2?$", key) for key in bucket), [*bucket]
    assert not (ada.checkout / "mlflow.db").exists()
    assert not (ada.checkout / "mlartifacts").exists()


def test_the_sweep_is_one_parent_and_its_jobs(team: Team, ada: Member, client: MlflowClient) -> None:
    (sweep,) = (ada.checkout / "runs/sweeps").iterdir()
    jobs = [held(client, path.parent) for path in sorted(sweep.glob("*/run.json"))]
    assert sorted(job.data.params["optimizer"] for job in jobs) == ["adamw", "sgd"]
    (parent,) = {job.data.tags["mlflow.parentRunId"] for job in jobs}
    above = client.get_run(parent)
    assert {run.info.status for run in (above, *jobs)} == {"FINISHED"}
    table = team.files("team-mlflow")[f"{above.info.experiment_id}/{parent}/artifacts/jobs.csv"]
    assert table == (sweep / "jobs.csv").read_bytes()


def test_data_and_results_come_from_the_bucket(team: Team, ada: Member, bob: Member) -> None:
    names = ["data.dvc", "data/split/train.npz", "results/train/iterations.csv", "results/evaluate/model.pt"]
    for name in names:
        assert (bob.checkout / name).read_bytes() == (ada.checkout / name).read_bytes()
    assert len([*(bob.checkout / "data/raw").iterdir()]) >= 4
    assert "up to date" in bob.type("dvc status")
    content = (ada.checkout / "data/split/train.npz").read_bytes()
    number = hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert team.files("team-dvc")[f"bestepoch/files/md5/{number[:2]}/{number[2:]}"] == content
    assert not list(bob.checkout.glob("runs/*")), "only what was pushed"


def test_another_member_adds_to_the_same_experiment_once_the_password_is_right(
    bob: Member, client: MlflowClient
) -> None:
    training = "python -m bestepoch.train train.epochs=1 seed=7 tracking.drain_seconds=4"
    said = bob.type(training, MLFLOW_TRACKING_PASSWORD="wrong")
    run = live.only_run(bob.checkout)
    assert len(live.journal_points(run)["lr"]) == 41
    refused = re.findall("warning: MLflow does not take the run's data (.*)", said)
    assert len(refused) == 1, said
    assert "MLFLOW_TRACKING_PASSWORD" in refused[0]
    assert "Traceback" not in said
    names = [found.info.run_name for found in live.mlflow_runs(client)]
    assert names
    assert run.name not in names
    bob.type(next(line for line in said.splitlines() if "bestepoch.sync" in line).partition("again: ")[2])
    stored = held(client, run)
    assert stored.info.status == "FINISHED"
    by_user = {found.info.experiment_id for found in live.mlflow_runs(client)}
    assert by_user == {stored.info.experiment_id}


@pytest.mark.parametrize(("name", "password"), [("bob", "wrong"), ("eve", "se/eve@cret-eve"), ("", "")])
def test_nobody_else_gets_in(team: Team, name: str, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    with pytest.raises(MlflowException, match="401"):
        MlflowClient(tracking_uri=team.address).search_experiments()


def test_the_server_answers_on_its_machine_and_to_the_names_it_was_told(team: Team) -> None:
    listening = [found.laddr for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    assert {place.ip for place in listening if place.port == team.port} == {"127.0.0.1"}

    def asked_as(host: str) -> int:
        request = urllib.request.Request(f"{team.address}/api/2.0/mlflow/experiments/get?experiment_id=0")
        request.add_header("Host", host)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        return refused.value.code

    assert asked_as("mlflow.example.org") == 401  # who are you?
    assert asked_as("elsewhere.example.org") == 403


def test_a_backup_brings_back_every_point(team: Team, ada: Member, bob: Member) -> None:
    shell(f"{BACKUP}\n{RESTORE}", team.folder, environment() | team.database.environment())
    count = "select count(*), count(distinct run_uuid), sum(value) from metrics"
    points = team.database.ask(count, "mlflow")
    assert int(points.split("|")[0]) > 4 * 2 * 41
    assert team.database.ask(count, "restored") == points
    assert (team.folder / "mlflow_users.dump").stat().st_size > 0


def test_no_password_is_in_any_file(team: Team, ada: Member, bob: Member) -> None:
    allowed = {team.folder / "server.env", ada.checkout / ".dvc/config.local"}
    assert "config.local" not in ada.type("git status --porcelain --untracked-files=all")
    dump = ["pg_dump", "mlflow"], ["pg_dump", "mlflow_users"]
    dumps = [shell(shlex.join(it), team.folder, environment() | team.database.environment()).encode() for it in dump]
    files = [p for top in (team.folder, ada.checkout, bob.checkout) for p in top.rglob("*") if p.is_file()]
    names = {path.name for path in files}
    assert {"run.json", "mlflow.json", "parent.json", "mlflow.log", "config.local"} <= names
    texts = {str(path): path.read_bytes() for path in files if path not in allowed}
    texts |= {f"bucket {key}": text for key, text in team.files("team-mlflow").items()}
    texts |= dict(zip(("mlflow", "mlflow_users"), dumps, strict=True))
    shown = [(name, who) for name, text in texts.items() for who, secret in SECRETS.items() if secret.encode() in text]
    assert not shown


def test_the_targets_of_make_that_the_page_names_are_there() -> None:
    told = set(re.findall(r"`make ([a-z]+)", PAGE))
    targets = set(re.findall(r"^([a-z]+):", (live.CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert told
    assert told <= targets

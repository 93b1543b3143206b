"""The files of habits, from .github/ to the Dockerfile: what they run is run here, and what they name exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import live
from pipeline import BIN, commit, edit, environment, fresh_copy, metrics, run

CHECKOUT = live.CHECKOUT
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (CHECKOUT / ".github/workflows").glob("*.yml")}
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
HOOKS = {repo["repo"]: repo for repo in yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())["repos"]}


def steps(workflow: str, job: str) -> list[dict[str, Any]]:
    return list(WORKFLOWS[workflow]["jobs"][job]["steps"])


def all_jobs() -> list[dict[str, Any]]:
    return [job for workflow in WORKFLOWS.values() for job in workflow["jobs"].values()]


def table(markdown: str, name: str) -> dict[str, tuple[str, str]]:
    """The table whose second column is ``name``: of each row, by its path and name, the base's and the new value."""
    block = next(part for part in markdown.split("\n\n") if re.match(rf"\| Path +\| {name} ", part))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]
    return {f"{row[0]}:{row[1]}": (row[2], row[3]) for row in rows}


def test_the_tests_run_by_make_on_each_python_of_the_classifiers() -> None:
    job = WORKFLOWS["test"]["jobs"]["test"]
    commands = [step["run"] for step in job["steps"] if "run" in step and "if" not in step]
    assert commands == ["make check", "make test"]
    assert {command.split()[1] for command in commands} <= TARGETS
    matrix = job["strategy"]["matrix"]
    named = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in PROJECT["classifiers"]]
    assert matrix["python"] == [found[1] for found in named if found]
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos"}


def test_a_token_that_may_write_meets_no_code_of_a_pull_request() -> None:
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] in ({}, {"contents": "read"})
        for job in workflow["jobs"].values():
            used = [step["uses"] for step in job["steps"] if "uses" in step]
            # actions of GitHub's own, and an image by its version
            assert all(name.startswith("actions/") or re.search(r"^docker://.+:\d+\.\d+\.\d+$", name) for name in used)
            if "write" in job.get("permissions", {}).values():
                assert not any(name.startswith("actions/checkout") for name in used)
                assert "head.repo.full_name == github.repository" in job["if"]
            for step in job["steps"]:
                assert "${{" not in step.get("run", ""), "a title or a branch's name would be read as shell"
                if step.get("uses", "").startswith("actions/checkout"):
                    assert step["with"]["persist-credentials"] is False


def test_every_job_ends_by_itself() -> None:
    assert all(job["timeout-minutes"] <= 150 for job in all_jobs())


@pytest.fixture(scope="module")
def pull_request(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as the workflow has it, made small: the base branch learns by AdamW, the pull request by SGD."""
    folder = fresh_copy(tmp_path_factory.mktemp("report"))
    edit(folder / "params.yaml", "model: cnn ", "model: mlp ")
    edit(folder / "params.yaml", "epochs: 6 ", "epochs: 1 ")
    edit(folder / "conf/config.yaml", "mlflow: true", "mlflow: false")
    edit(folder / "conf/config.yaml", "tensorboard: true", "tensorboard: false")
    commit(folder)
    run(folder, "git", "update-ref", "refs/remotes/origin/main", "HEAD")
    edit(folder / "params.yaml", "optimizer: adamw ", "optimizer: sgd ")
    commit(folder)
    run(folder, "git", "checkout", "-q", "--detach")
    # .venv as make would find it once it is installed
    (folder / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / part).symlink_to(BIN.parent / part)
    (folder / ".venv/.installed").touch()
    return folder


def run_job(job: str, folder: Path, **variables: str) -> None:
    """Run the shell steps of a job of report.yml in their order, as GitHub's runner does."""
    for step in steps("report", job):
        if "run" in step:
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                cwd=folder,
                env=environment() | variables,
                capture_output=True,
                text=True,
                timeout=900,
            )
            assert done.returncode == 0, f"{step['name']}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.xdist_group("habits")
def test_the_report_of_a_pull_request(pull_request: Path, tmp_path: Path) -> None:
    summary, paths = tmp_path / "summary.md", tmp_path / "paths"
    run_job("report", pull_request, GITHUB_BASE_REF="main", GITHUB_STEP_SUMMARY=str(summary), GITHUB_PATH=str(paths))
    assert paths.read_text() == f"{pull_request}/.venv/bin\n"
    report = (pull_request / "report/report.md").read_text()
    assert summary.read_text() == report
    assert report.startswith("### On the offline sample, beside `main`\n")

    measured = table(report, "Metric")
    for name in ("val_loss", "test_accuracy"):
        base, changed = measured[f"results/evaluate/metrics.json:{name}"]
        assert float(changed) == pytest.approx(metrics(pull_request)[name], abs=1e-5)
        assert float(base) != float(changed)
    chosen = table(report, "Param")
    assert chosen["params.yaml:optimizer"] == ("adamw", "sgd")
    assert chosen["conf/optimizer/sgd.yaml:momentum"] == ("-", "0.9")
    assert "params.yaml:data" not in chosen, "both learn the sample"

    picture = (pull_request / "results/evaluate/loss.png").read_bytes()
    assert (pull_request / "report/loss.png").read_bytes() == picture
    Image.open(pull_request / "report/loss.png").verify()
    assert "val" in (pull_request / "report/report.html").read_text()

    # the comment, with a folder as GitHub's server and a gh that notes what it is asked
    server = tmp_path / "server"
    run(tmp_path, "git", "init", "-q", "--bare", str(server / "owner/name"))
    gh = tmp_path / "bin/gh"
    gh.parent.mkdir()
    gh.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    gh.chmod(0o755)
    variables = {
        "PATH": f"{gh.parent}:{environment()['PATH']}",
        "GITHUB_SERVER_URL": str(server),
        "GITHUB_REPOSITORY": "owner/name",
        "PULL_REQUEST": "7",
    }
    for push in ("first", "second"):  # of two pushes to the pull request, each on a machine of its own
        shutil.copytree(pull_request / "report", tmp_path / push / "report")
        run_job("comment", tmp_path / push, **variables)
        body = (tmp_path / push / "report/report.md").read_text()
        assert body.startswith(report)
        link = re.fullmatch(r"!\[[\w ]+\]\((.+)/raw/([0-9a-f]{40})/loss\.png\)", body.removeprefix(report).strip())
        assert link is not None and link[1] == str(server / "owner/name")
        stored = ["git", "-C", link[1], "show", "refs/reports/7:loss.png"]
        assert subprocess.run(stored, capture_output=True, check=True).stdout == picture
        assert run(tmp_path, "git", "-C", link[1], "rev-parse", "refs/reports/7").strip() == link[2]
    comment = "pr comment 7 --repo owner/name --edit-last --create-if-none --body-file report/report.md"
    assert (tmp_path / "asked").read_text().splitlines() == ["auth setup-git", comment] * 2


def test_pre_commit_has_the_ruff_of_lint_and_the_actionlint_of_the_workflow() -> None:
    pinned = "\n".join(path.read_text() for path in CHECKOUT.glob("requirements*.txt"))
    ruff = re.search(r"^ruff==(.+)$", pinned, re.MULTILINE)
    assert ruff is not None
    assert HOOKS["https://github.com/astral-sh/ruff-pre-commit"]["rev"] == f"v{ruff[1]}"
    actionlint = HOOKS["https://github.com/rhysd/actionlint"]["rev"].removeprefix("v")
    assert steps("test", "workflows")[-1]["uses"] == f"docker://rhysd/actionlint:{actionlint}"
    names = {hook["id"] for repo in HOOKS.values() for hook in repo["hooks"]}
    assert names >= {"ruff-check", "ruff-format", "end-of-file-fixer", "check-added-large-files", "check-yaml"}


def test_the_image_runs_the_pipeline_as_an_ordinary_user() -> None:
    text = re.sub(r"\\\n", " ", (CHECKOUT / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    copied = [word for name, rest in lines if name == "COPY" for word in rest.split()[:-1] if not word.startswith("-")]
    assert copied == ["requirements.txt", "."] and all((CHECKOUT / name).exists() for name in copied)
    assert [rest for name, rest in lines if name == "USER"] == ["bestepoch"]
    assert "useradd --create-home --uid" in text
    assert [name for name, _ in lines][-3:] == ["USER", "RUN", "CMD"]
    assert json.loads(lines[-1][1]) == ["dvc", "repro"]
    python = re.fullmatch(r"python:(3\.\d+)-slim", next(rest for name, rest in lines if name == "FROM"))
    assert python is not None and python[1] in WORKFLOWS["test"]["jobs"]["test"]["strategy"]["matrix"]["python"]


def test_the_image_gets_no_history_and_nothing_that_a_run_leaves() -> None:
    left_out = set((CHECKOUT / ".dockerignore").read_text().splitlines())
    assert left_out >= {".git", ".venv", "data", "results", "runs", "mlflow.db*", ".dvc/config.local"}
    here = {line.strip("/") for line in (CHECKOUT / ".gitignore").read_text().splitlines() if line.startswith("/")}
    # what git ignores in the root, but for make's half-made files and what lies below data/ and results/
    assert {name for name in here if not re.match(r"data/|results/|requirements", name)} <= left_out


def test_pip_takes_torch_for_processors_from_one_address() -> None:
    index = "https://download.pytorch.org/whl/cpu"
    container = json.loads((CHECKOUT / ".devcontainer/devcontainer.json").read_text())
    assert container["containerEnv"]["PIP_EXTRA_INDEX_URL"] == index
    assert WORKFLOWS["test"]["env"]["PIP_EXTRA_INDEX_URL"] == index
    assert WORKFLOWS["report"]["jobs"]["report"]["env"]["PIP_EXTRA_INDEX_URL"] == index
    assert f"ARG TORCH_INDEX={index}\n" in (CHECKOUT / "Dockerfile").read_text()


def test_the_development_container_is_made_by_make_and_has_the_extensions() -> None:
    container = json.loads((CHECKOUT / ".devcontainer/devcontainer.json").read_text())
    make, target = container["postCreateCommand"].split()
    assert make == "make" and target in TARGETS
    extensions = container["customizations"]["vscode"]["extensions"]
    assert {"iterative.dvc", "ms-python.python", "charliermarsh.ruff"} <= set(extensions)


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what 1.2.0 requires
    assert citation["cff-version"] == "1.2.0" and citation["authors"] == [{"name": "The bestepoch maintainers"}]
    assert (citation["title"], citation["version"]) == (PROJECT["name"], PROJECT["version"])
    assert citation["license"] == PROJECT["license"]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", ".github/pull_request_template.md"])
def test_what_the_prose_names_is_there(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]+)?\)", text):
        assert (CHECKOUT / link).is_file(), link
    assert set(re.findall(r"^make (\w+)|`make (\w+)`", text, re.MULTILINE)) <= {
        pair for target in TARGETS for pair in ((target, ""), ("", target))
    }


def test_the_changelog_is_kept_in_its_format() -> None:
    text = (CHECKOUT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[0] == "[Unreleased]"
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for release in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        named = re.findall(r"^### (.+)$", release, re.MULTILINE)
        assert named == [kind for kind in kinds if kind in named]


def test_make_says_what_a_folder_without_git_needs(tmp_path: Path) -> None:
    shutil.copyfile(CHECKOUT / "Makefile", tmp_path / "Makefile")
    assert "this folder is none. Type: git init && make repro\n" in run(tmp_path, "make", "repro", ok=False)
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, "make", ".repository")


@pytest.mark.parametrize("name", ["rwlock", "lock"])
def test_make_says_what_a_damaged_lock_of_dvc_needs(name: str, tmp_path: Path) -> None:
    shutil.copyfile(CHECKOUT / "Makefile", tmp_path / "Makefile")
    for folder in (".git", ".venv", f".dvc/tmp/{name}"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("requirements.txt", "pyproject.toml", ".venv/.installed"):
        (tmp_path / file).touch()
    says = f"Where no dvc runs, type: rm -r .dvc/tmp/{name}\n"
    assert says in run(tmp_path, "make", "repro", ok=False)
    (tmp_path / ".dvc/tmp" / name).rmdir()
    (tmp_path / ".dvc/tmp/rwlock").write_text('{"read": {}', encoding="utf-8")  # cut off
    assert "type: rm -r .dvc/tmp/rwlock\n" in run(tmp_path, "make", "repro", ok=False)
    (tmp_path / ".dvc/tmp/rwlock").write_text("{}", encoding="utf-8")
    assert "Where no dvc runs" not in run(tmp_path, "make", "repro", ok=False)  # DVC goes on, and finds no project


def test_make_works_in_a_path_with_a_space(tmp_path: Path) -> None:
    """Two words would be two targets: `make clean` removed `thesis/.venv` beside `thesis final`."""
    for name in ("thesis", "thesis final"):
        (tmp_path / name / ".venv").mkdir(parents=True)
        shutil.copyfile(CHECKOUT / "Makefile", tmp_path / name / "Makefile")
    run(tmp_path / "thesis final", "make", "clean")
    assert sorted(path.parent.name for path in tmp_path.glob("*/.venv")) == ["thesis"]

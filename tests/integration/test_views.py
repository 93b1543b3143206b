"""What the tracker puts into MLflow for those who look: views, descriptions, tags, a model with its results."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import live
from bestepoch.base import git
from bestepoch.base.files import digest
from bestepoch.tracking.mlflow import views
from bestepoch.tracking.mlflow.run import set_description
from bestepoch.tracking.mlflow.views import BEST_EPOCHS, DESCRIPTION, LEARNING_CURVES, VIEWS_TAG, create_default_views
from bestepoch.tracking.run_names import describe_setting

pytestmark = pytest.mark.xdist_group("views")
QUICK = (*live.SAMPLE, "train.epochs=20", "tracking.tensorboard=false")  # seconds, in which its machine is watched
NOTE = "mlflow.note.content"
VIEW = "mlflow.sharedViewState."
# what decides the numbers, and no more
PARAMS = {
    "model": {"channels", "kernel_sizes", "strides", "pool_sizes", "padding", "activation", "dropout", "tta_shift"},
    "optimizer": {"lr", "betas", "weight_decay", "l1"},
    "scheduler": {"pct_start", "div_factor", "final_div_factor"},
    "augment": {"pixels"},
    "split": {"validation", "seed"},
    "train": {"epochs", "batch_size"},
    "loss": {"label_smoothing"},
    "device": {"name", "threads", "precision"},
}
DERIVED = {"plan.iterations_per_epoch", "plan.updates", "network.weights"}
CHOSEN = {"data", "model", "optimizer", "scheduler", "augment", "stopping", "seed"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("views") / "project")))
    live.git(folder, "remote", "add", "origin", "https://name:secret@git.example.org/team/pipeline.git")
    (folder / "conf/experiment/mine.yaml").write_text("# @package _global_\nseed: 3\n")
    live.run(
        folder,
        "train",
        *QUICK,
        "+experiment=mine",
        "tracking.system_metrics=true",  # every 10 seconds, which a short run does not see
    )
    return folder


@pytest.fixture(scope="module")
def client(project: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=live.store(project))


@pytest.fixture
def trained(client: MlflowClient) -> Any:
    (run,) = live.mlflow_runs(client)
    return run


def evaluate(project: Path) -> dict[str, Any]:
    run = live.only_run(project)
    live.run(project, "evaluate", f"run={run.relative_to(project)}")
    return dict(json.loads((run / "evaluate/metrics.json").read_text()))


def state(tag: str) -> dict[str, Any]:
    """A view as the UI reads it."""
    kept = json.loads(tag)
    assert set(kept) == {"name", "createdAt", "updatedAt", "state"}
    assert kept["state"].startswith("deflate;")
    return dict(json.loads(zlib.decompress(base64.b64decode(kept["state"].removeprefix("deflate;")))))


def test_the_experiment_is_described_and_has_its_views(client: MlflowClient) -> None:
    tags = client.get_experiment_by_name("bestepoch").tags
    found = {json.loads(tags[key])["name"]: state(tags[key]) for key in tags if key.startswith(VIEW)}
    assert set(found) == {"Best epochs", "Learning curves", "By setting", "Sweeps"}
    table = found["Best epochs"]
    assert (table["orderByKey"], table["orderByAsc"]) == ("metrics.`best/val_accuracy`", False)
    for column in ("best/epoch", "best/val_loss", "best/val_accuracy", "test/accuracy"):
        assert f"metrics.`{column}`" in table["selectedColumns"]
    for name in ("Learning curves", "By setting"):
        charts = [chart for chart in found[name]["compareRunCharts"] if not chart["deleted"]]
        shown = [chart["selectedMetricKeys"] for chart in charts]
        assert ["train/eval_loss", "val/loss"] in shown and ["train/eval_accuracy", "val/accuracy"] in shown
        assert {key for keys in shown for key in keys} == live.PER_ITERATION | live.PER_EPOCH
        # or the UI would draw it once more by itself
        keys = [chart["metricKey"] for chart in found[name]["compareRunCharts"]]
        assert sorted(keys) == sorted(live.PER_ITERATION | live.PER_EPOCH)
        groups = {section["uuid"]: section for section in found[name]["compareRunSections"]}
        for chart in charts:
            section, by_epoch = groups[chart["metricSectionId"]], chart["metricKey"] in live.PER_EPOCH
            assert section["display"] and f"step = {'epoch' if by_epoch else 'iteration'}" in section["name"]
    assert found["By setting"]["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "setting"}]
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    for name in (*live.PER_ITERATION, *live.PER_EPOCH):
        assert f"`{name}`" in tags[NOTE]
    assert max(map(len, tags.values())) < 5000, "the longest that MLflow stores"


def test_views_are_written_once_and_what_a_person_made_of_them_stays(client: MlflowClient) -> None:
    number = client.create_experiment("another", tags={NOTE: "ours"})
    create_default_views(client, client.get_experiment(number))
    tags = client.get_experiment(number).tags
    assert tags[NOTE] == "ours" and sum(key.startswith(VIEW) for key in tags) == 4
    client.delete_experiment_tag(number, VIEW + BEST_EPOCHS)
    client.delete_experiment_tag(number, NOTE)
    client.set_experiment_tag(number, VIEW + LEARNING_CURVES, "changed")
    before = client.get_experiment(number).tags
    assert before != tags
    create_default_views(client, client.get_experiment(number))
    assert client.get_experiment(number).tags == before


def as_the_ui_saves(name: str, content: dict[str, Any]) -> str:
    return json.dumps({"name": name, "createdAt": 1, "updatedAt": 1, "state": views.encode_state(content)})


def test_a_view_of_an_earlier_version_is_renewed_unless_a_person_changed_it(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = {"orderByKey": "metrics.`best/val_loss`"}
    monkeypatch.setattr(
        views, "EARLIER_DIGESTS", {key: digest(["Best epochs", earlier]) for key in (VIEW + BEST_EPOCHS, NOTE)}
    )
    for name, saved, renewed in (("unchanged", earlier, True), ("changed", {"orderByKey": "mine"}, False)):
        tag = as_the_ui_saves("Best epochs", saved)
        number = client.create_experiment(name, tags={VIEW + BEST_EPOCHS: tag, VIEW + "mine": tag, VIEWS_TAG: "1"})
        for _ in range(2):
            create_default_views(client, client.get_experiment(number))
            tags = client.get_experiment(number).tags
            assert (tags[VIEW + BEST_EPOCHS] != tag) is renewed
            assert tags[VIEW + "mine"] == tag
            assert NOTE not in tags, "which a person had deleted"
        if renewed:
            assert state(tags[VIEW + BEST_EPOCHS])["orderByKey"] == "metrics.`best/val_accuracy`"


def test_each_of_several_data_sets_has_a_view_of_its_own(client: MlflowClient) -> None:
    number = client.create_experiment("several")
    for data, expected in (
        ("mnist", set()),
        ("fashion", {"mnist", "fashion"}),
        ("kmnist", {"mnist", "fashion", "kmnist"}),
    ):
        client.create_run(number, tags={"dataset": data})
        views.add_data_set_views(client, number, data)
        tags = client.get_experiment(number).tags
        found = {key.removeprefix(VIEW + BEST_EPOCHS + "-"): state(tags[key]) for key in tags if key.startswith(VIEW)}
        assert set(found) == expected
        assert all(view["searchFilter"] == f"tags.dataset = '{name}'" for name, view in found.items())


def test_runs_of_one_setting_differ_in_the_seed_and_the_fold_alone(project: Path) -> None:
    info = json.loads((live.only_run(project) / "run.json").read_text())

    def setting(**changed: Any) -> str:
        with contextlib.chdir(project):
            return describe_setting({**info, "config": {**info["config"], **changed}})

    own = setting()
    assert own.startswith(
        "cnn-adamw lr=0.01 batch_size=100 epochs=20 label_smoothing=0.0 onecycle shift mnist_sample #"
    )
    assert setting(seed=5) == setting(split={**info["config"]["split"], "seed": 9}) == own
    split = info["config"]["split"]
    assert setting(split={**split, "folds": 5, "fold": 1}) == setting(split={**split, "folds": 5, "fold": 2}) != own
    assert " dropout=0.5 " in setting(model={**info["config"]["model"], "dropout": 0.5})
    assert setting(device={**info["config"]["device"], "threads": 7}) != own


def test_runs_that_begin_at_the_same_moment_all_furnish_their_experiment(tmp_path: Path) -> None:
    """MLflow looks whether it has a tag, then adds it: of those that come at once only the first one can."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    clients = [MlflowClient(tracking_uri=uri) for _ in range(4)]
    for number in map(clients[0].create_experiment, "ab"):
        bare = clients[0].get_experiment(number)
        together = threading.Barrier(len(clients))

        def begin(client: MlflowClient, bare: Any = bare, together: threading.Barrier = together) -> None:
            together.wait()
            create_default_views(client, bare)

        with ThreadPoolExecutor(len(clients)) as threads:
            list(threads.map(begin, clients))  # which raises what one of them did
        assert sum(key.startswith(VIEW) for key in clients[0].get_experiment(number).tags) == 4


def test_a_run_says_what_it_was(project: Path, trained: Any) -> None:
    info = json.loads((live.only_run(project) / "run.json").read_text())
    text = trained.data.tags[NOTE]
    word, _, reason = info["verdict"]["sentence"].partition(": ")
    assert f"**{word.capitalize()}:** {reason}" in text and f"`{info['verdict']['override']}`" in text
    assert "4,050 images ÷ 100 a batch = 41 iterations an epoch" in text
    assert f"```\n{info['command']}\n```" in text
    commit = live.git(project, "rev-parse", "HEAD").strip()
    url = f"https://git.example.org/team/pipeline/commit/{commit}"
    assert f"[`{commit[:10]}`]({url})" in text and "secret" not in json.dumps(trained.data.tags)
    assert trained.data.tags["git.url"] == url
    assert trained.data.tags["preset"] == "mine"


def test_params_are_few_and_none_is_empty(trained: Any) -> None:
    assert "None" not in trained.data.params.values()
    settings = {f"{menu}.{key}" for menu, keys in PARAMS.items() for key in keys}
    assert set(trained.data.params) == CHOSEN | DERIVED | settings
    assert "train.iterations" not in trained.data.params and trained.data.params["train.epochs"] == "20"


def test_what_the_machine_did_is_in_the_group_system(trained: Any) -> None:
    names = {key for key in trained.data.metrics if key.startswith("system/")}
    assert "system/cpu_utilization_percentage" in names and "system/system_memory_usage_megabytes" in names


def test_a_name_that_a_person_gave_stays(project: Path, client: MlflowClient, trained: Any) -> None:
    client.update_run(trained.info.run_id, name="Monday")
    folder = live.only_run(project).relative_to(project)
    live.run(project, "sync", f"run={folder}")
    evaluate(project)
    live.run(project, "sync", f"run={folder}")
    assert client.get_run(trained.info.run_id).info.run_name == "Monday"


@pytest.mark.slow
def test_an_evaluation_adds_its_results_to_the_description_and_to_one_model(
    project: Path, client: MlflowClient
) -> None:
    metrics = evaluate(project)
    (run,) = live.mlflow_runs(client)
    assert f"{metrics['test_accuracy']:.2%}" in run.data.tags[NOTE]
    told = {
        key: run.data.metrics[key]
        for key in ("best/epoch", "best/val_loss", "best/val_accuracy", "test/loss", "test/accuracy")
    }
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert {metric.key: metric.value for metric in model.metrics} == told
    for metric in model.metrics:
        of = "mnist_sample-test" if metric.key.startswith("test/") else "mnist_sample-validation"
        assert (metric.dataset_name, len(metric.dataset_digest)) == (of, 12)
    (output,) = run.outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, metrics["best_epoch"])
    # again: the same model, the same points, and a person's words are theirs
    client.set_tag(run.info.run_id, NOTE, "mine")
    evaluate(project)
    (same,) = client.search_logged_models([run.info.experiment_id])
    assert same.model_id == model.model_id
    assert all(len(client.get_metric_history(run.info.run_id, key)) == 1 for key in told)
    assert client.get_run(run.info.run_id).data.tags[NOTE] == "mine"
    (version,) = client.search_model_versions("name = 'bestepoch-mnist_sample'")
    assert version.run_id == run.info.run_id


def test_a_description_is_renewed_until_a_person_edits_it(client: MlflowClient) -> None:
    run = client.create_run(client.create_experiment("described")).info.run_id

    def said() -> str:
        return str(client.get_run(run).data.tags[NOTE])

    set_description(client, run, "first\n\ntext")
    assert said().startswith("first\n\ntext\n\n[bestepoch]: # (")
    set_description(client, run, "second")
    assert said().startswith("second\n\n")
    client.set_tag(run, NOTE, said().replace("second", "Monday: this one"))
    set_description(client, run, "third")
    assert said().startswith("Monday: this one")


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("git@github.com:o/r.git", "https://github.com/o/r/commit/abc"),
        ("https://user:token@github.com/o/r", "https://github.com/o/r/commit/abc"),
        ("https://gitlab.com/group/sub/r.git", "https://gitlab.com/group/sub/r/-/commit/abc"),
        ("git@bitbucket.org:o/r.git", "https://bitbucket.org/o/r/commits/abc"),
        ("ssh://git@host.example.org:2222/o/r.git", "https://host.example.org/o/r/commit/abc"),
        ("https://git.example.org:8443/o/r/", "https://git.example.org:8443/o/r/commit/abc"),
        *((remote, None) for remote in ("", "/srv/git/r.git", "../r.git", "file:///srv/git/r.git", "host:r", "C:/a/b")),
    ],
)
def test_a_commit_is_a_link_where_the_remote_is_a_server(remote: str, url: str | None) -> None:
    assert git.commit_url(remote, "abc") == url


def test_runs_are_found_as_the_description_says(client: MlflowClient) -> None:
    filters = re.findall(r"`((?:metrics|params|tags)\.[^`]+)`", DESCRIPTION)
    assert len(filters) == 2
    number = client.create_experiment("found")
    run = client.create_run(number, tags={"sweep": "<name>"}).info.run_id
    client.log_param(run, "optimizer", "adamw")
    client.log_metric(run, "test/accuracy", 0.995)
    client.create_run(number)  # another one, which has none of it
    for text in filters:
        assert [found.info.run_id for found in client.search_runs([number], text)] == [run], text

"""The pages that a person opens, in a real browser: the report from the disk, what `make ui` serves after a sweep."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, expect

import live

sys.path.insert(0, str(live.CHECKOUT / "docs"))
import pictures  # the pictures in the README are of these very pages

pytestmark = [
    pytest.mark.skipif(pictures.CHROMIUM is None, reason="needs Chromium: Debian's package, or CHROMIUM=/path/to/it"),
    pytest.mark.slow,
    pytest.mark.xdist_group("pages"),
]
JOBS = ("-m", *live.SAMPLE, "model=mlp", "model.hidden=[16]", "train.epochs=2", "train.batch_size=50,200", "seed=1")


@dataclass
class Trained:
    """A project with a sweep of two batch sizes, of which the winner is tested, and a run from the shell."""

    project: Path
    links: dict[str, str]
    client: MlflowClient

    @property
    def jobs(self) -> dict[str, Path]:
        return {path.parent.name: path.parent for path in self.project.glob("runs/sweeps/*/*/run.json")}

    @property
    def winner(self) -> Path:
        (found,) = self.project.glob("runs/sweeps/*/*/evaluate")
        return found.parent

    def title(self, name: str) -> str:
        """What MLflow calls the job with a folder of this name."""
        return f"mlp-adamw batch_size={name.removeprefix('batch_size').split('-')[0]} s1"

    def run_of(self, folder: Path) -> Any:
        return self.client.get_run(json.loads((folder / "run.json").read_text())["mlflow"]["run_id"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with pictures.browser() as started:
        yield started


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    project = live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("pages") / "project")))
    live.run(project, "train", *JOBS)
    (sweep,) = (path.parent for path in project.glob("runs/sweeps/*/sweep.json"))
    live.run(project, "promote", f"sweep={sweep.relative_to(project)}")
    with pictures.ui(project, live.environment(project)) as links:
        yield Trained(project, links, MlflowClient(tracking_uri=live.store(project)))


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_report_opens_from_the_disk_alone(trained: Trained, browser: Browser, width: int, scheme: str) -> None:
    run = trained.winner
    epochs = live.table(run / "epochs.csv")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((run / "evaluate/report.html").as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.locator("h1").inner_text() == run.name
    best = min(epochs, key=lambda row: float(row["val/loss"]))["epoch"]
    assert page.locator(".verdict strong").first.inner_text() == best
    assert page.locator("tr.best td").first.inner_text() == f"{best} · best"
    assert page.locator("#epochs tr").count() == 1 + len(epochs)
    assert page.locator("figure svg").count() == 8
    # nothing is wider than the screen, but for the table, which scrolls by itself
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def cells(page: Page) -> list[dict[str, str]]:
    """The rows of the runs table, by the names of their columns; the name's own cells are a table apart, in order."""
    page.locator(".ag-center-cols-container [role=row]").first.wait_for(timeout=60_000)
    rows: dict[str, dict[str, str]] = {}
    for cell in page.locator("[role=gridcell][col-id]").all():
        row = cell.locator("xpath=ancestor::*[@role='row'][1]").get_attribute("row-index") or ""
        rows.setdefault(row, {})[cell.get_attribute("col-id") or ""] = cell.inner_text().strip()
    return [rows[index] for index in sorted(rows, key=int)]


def test_the_view_best_epochs_answers_at_a_glance(trained: Trained, browser: Browser) -> None:
    page = pictures.opened(browser, trained.links["best epochs"], 2600, 900)
    page.get_by_role("columnheader", name="best/val_loss").first.wait_for(timeout=60_000)
    page.wait_for_timeout(2000)
    assert page.get_by_text("Model training").count() >= 1
    rows = cells(page)
    wanted = []
    for name, folder in trained.jobs.items():
        best = min(live.table(folder / "epochs.csv"), key=lambda row: float(row["val/loss"]))
        wanted.append((-float(best["val/accuracy"]), name, best))
    wanted.sort()
    names = [row["attributes.`Run Name`"].splitlines()[-1] for row in rows]
    assert names == [trained.title(name) for _, name, _ in wanted], "the highest accuracy first, and no sweep's parent"
    for row, (_, name, best) in zip(rows, wanted, strict=True):
        assert row["metrics.`best/epoch`"] == best["epoch"]
        for column, value in (
            ("best/val_loss", float(best["val/loss"])),
            ("best/val_accuracy", float(best["val/accuracy"])),
        ):
            assert float(row[f"metrics.`{column}`"]) == pytest.approx(value, rel=1e-12)
        assert "mnist_sample" in row["attributes.`Dataset`"]
        assert row["params.`train.batch_size`"] == name.removeprefix("batch_size").split("-")[0]
        assert row["params.`model`"] == "mlp" and row["tags.`sweep`"] == trained.winner.parent.name
        assert row["tags.`device`"] == "cpu" and row["tags.`git.dirty`"] in ("true", "false")
    (first,) = (row for row, (_, name, _) in zip(rows, wanted, strict=True) if name == trained.winner.name)
    (other,) = (row for row in rows if row is not first)
    metrics = json.loads((trained.winner / "evaluate/metrics.json").read_text())
    assert float(first["metrics.`test/accuracy`"]) == pytest.approx(metrics["test_accuracy"], rel=1e-12)
    assert "bestepoch-mnist_sample" in first["attributes.`Models`"]
    assert other["metrics.`test/accuracy`"] == "-", "only the winner meets the test images"
    page.close()


def test_the_view_learning_curves_draws_every_run(trained: Trained, browser: Browser) -> None:
    page = pictures.opened(browser, trained.links["learning curves"], 1700, 1800)
    page.locator("svg.main-svg").first.wait_for(timeout=60_000)
    together = ("train/eval_loss vs val/loss", "train/eval_accuracy vs val/accuracy")
    for title in (*together, "train/epoch_loss", "train/loss", "lr", "train/grad_norm"):
        expect(page.get_by_text(title, exact=True).first).to_be_visible(timeout=60_000)
    for group in ("By epoch", "By iteration"):
        head = page.locator("[role=button][aria-expanded=true]", has_text=re.compile(rf"^{group} \(step = .*\(3\)"))
        expect(head.first).to_be_visible(timeout=30_000)
    for name in trained.jobs:
        expect(page.get_by_text(f"{trained.title(name)} (train/loss)").first).to_be_visible(timeout=30_000)
    page.close()


def view(trained: Trained, key: str) -> str:
    return trained.links["best epochs"].replace("viewStateShareKey=best-epochs", f"viewStateShareKey={key}")


def test_the_view_by_setting_has_a_group_for_each(trained: Trained, browser: Browser) -> None:
    page = pictures.opened(browser, view(trained, "by-setting"), 2600, 900)
    for size in (50, 200):
        words = f"Group: mlp-adamw lr=0.01 batch_size={size} epochs=2"
        expect(page.get_by_text(words).first).to_be_visible(timeout=60_000)
    page.close()


def test_the_view_sweeps_begins_with_the_sweep_whose_page_has_its_picture(trained: Trained, browser: Browser) -> None:
    page = pictures.opened(browser, view(trained, "sweeps"), 2600, 900)
    rows = cells(page)
    assert len(rows) == 3 and rows[0]["tags.`best`"] == trained.winner.name
    assert "worse by" in rows[0]["tags.`answer`"]
    assert {row["tags.`sweep`"] for row in rows} == {trained.winner.parent.name}
    page.close()
    run_id = trained.run_of(trained.winner).data.tags["mlflow.parentRunId"]
    page = pictures.opened(browser, pictures.of_run(trained.links["best epochs"], run_id), 1600, 1400)
    picture = page.locator("img[src*='sweep.png']")
    picture.wait_for(state="attached", timeout=60_000)
    page.wait_for_function("image => image.complete", arg=picture.element_handle())
    assert picture.evaluate("image => image.naturalWidth") > 500
    page.close()


def test_a_runs_page_shows_what_it_was(trained: Trained, browser: Browser) -> None:
    run = trained.run_of(trained.winner)
    metrics = json.loads((trained.winner / "evaluate/metrics.json").read_text())
    page = pictures.opened(browser, pictures.of_run(trained.links["best epochs"], run.info.run_id), 1600, 1400)
    page.get_by_text("Show more", exact=True).first.click(timeout=60_000)
    said = page.locator("body").inner_text()
    assert f"Epoch {metrics['best_epoch']} of 2 is best" in said and f"{metrics['test_accuracy']:.2%}" in said
    assert "images ÷" in said and "The same run again" in said
    assert "python -m bestepoch.train" in said
    assert "[bestepoch]" not in said, "the mark of whose text it is"
    assert "bestepoch-mnist_sample" in said
    page.close()
    page = pictures.opened(
        browser, pictures.of_run(trained.links["best epochs"], run.info.run_id, "model-metrics"), 1600, 1400
    )
    for group in ("best", "test", "train", "val"):
        page.locator("[role=button][aria-expanded]", has_text=re.compile(f"^{group}")).first.wait_for(timeout=60_000)
    page.close()


@pytest.mark.parametrize(
    ("file", "seen"),
    [("evaluate/report.html", "frame"), ("evaluate/confusion.png", "img"), ("config.yaml", "label_smoothing")],
)
def test_artifacts_are_shown_in_place(trained: Trained, browser: Browser, file: str, seen: str) -> None:
    run = trained.run_of(trained.winner)
    page = pictures.opened(
        browser, pictures.of_run(trained.links["best epochs"], run.info.run_id, f"artifacts/{file}"), 1600, 1200
    )
    if seen == "frame":
        inside = page.frame_locator("iframe").first
        expect(inside.locator("h1")).to_have_text(trained.winner.name, timeout=60_000)
        assert inside.locator("figure svg").count() == 8
    elif seen == "img":
        drawn = page.locator("img[src^='blob:'], .js-plotly-plot image, img[src*='confusion']").first
        drawn.wait_for(timeout=60_000)
    else:
        expect(page.get_by_text(seen).first).to_be_visible(timeout=60_000)
    page.close()


def test_the_compare_page_draws_the_sweep(trained: Trained, browser: Browser) -> None:
    ids = [trained.run_of(folder).info.run_id for folder in trained.jobs.values()]
    page = pictures.opened(browser, pictures.of_comparison(trained.links["best epochs"], ids), 1600, 1400)
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible(timeout=60_000)
    page.locator("g.parcoords, .js-plotly-plot").first.wait_for(timeout=60_000)
    for name in trained.jobs:
        expect(page.get_by_text(trained.title(name), exact=True).first).to_be_visible()
    page.close()


def test_a_filter_of_the_readme_finds_the_runs(trained: Trained, browser: Browser) -> None:
    page = pictures.opened(browser, trained.links["best epochs"], 2000, 900)
    page.get_by_role("columnheader", name="best/val_loss").first.wait_for(timeout=60_000)
    box = page.get_by_placeholder("metrics.rmse").first
    box.fill("params.`train.batch_size` = '50'")
    box.press("Enter")
    expect(page.get_by_text("1 matching run")).to_be_visible(timeout=30_000)
    page.close()


def test_tensorboard_has_the_same_runs_and_more_than_curves(trained: Trained, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1500, "height": 2600})  # charts below the screen are not drawn
    page.goto(trained.links["TensorBoard"])
    for name in trained.jobs:
        expect(page.get_by_text(name).first).to_be_visible(timeout=60_000)
    for curve in ("lr", "train/epoch_loss", "train/loss", "val/accuracy", "val/loss"):
        expect(page.get_by_text(curve, exact=True).first).to_be_attached(timeout=60_000)
    expect(page.get_by_text("best/epoch", exact=True)).to_have_count(0)
    columns = page.locator("text=Value >> visible=true"), page.locator("text=Smoothed >> visible=true")
    expect(columns[0].first).to_be_visible(timeout=60_000)
    expect(columns[1]).to_have_count(0)
    for tab, shown in (
        ("images", ("confusion/validation", "images", "mistakes")),
        ("text", ("run/configuration", "run/summary", "run/evaluation")),
        ("hparams", ("train.batch_size", "best/epoch")),
        ("custom_scalars", ("loss of training images and validation", "learning rate")),
    ):
        page.goto(pictures.of_tab(trained.links["TensorBoard"], tab))
        for word in shown:
            expect(page.get_by_text(word).first).to_be_attached(timeout=60_000)
    page.close()

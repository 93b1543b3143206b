"""The pages that a person opens, in a real browser: the report from the disk, the MLflow UI from `make ui`'s server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

import live

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: Debian's package, or CHROMIUM=/path/to/it"),
    pytest.mark.xdist_group("pages"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one run from the shell, evaluated."""
    folder = live.project(tmp_path_factory.mktemp("pages"))
    live.run(folder, "train", *live.SAMPLE, "train.epochs=2")
    live.run(folder, "evaluate", f"run={live.only_run(folder).relative_to(folder)}")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield started
        started.close()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_report_opens_from_the_disk_alone(trained: Path, browser: Browser, width: int, scheme: str) -> None:
    run = live.only_run(trained)
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
    assert page.locator("figure svg").count() == 7
    # nothing is wider than the screen, but for the table, which scrolls by itself
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_the_mlflow_ui_shows_the_run(trained: Path, browser: Browser) -> None:
    run, port = live.only_run(trained), live.free_port()
    log = (trained / "ui.log").open("w+")
    server = subprocess.Popen(
        [sys.executable, "-m", "bestepoch.ui", str(port)],
        cwd=trained,
        env=live.environment(trained),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        link = next(word for word in (trained / "ui.log").read_text().split() if f"127.0.0.1:{port}/#/" in word)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.goto(link)
        row = page.get_by_role("link", name=run.name, exact=True)
        row.wait_for(timeout=60_000)
        assert page.get_by_text("mnist_sample (").count() == 1
        row.click()
        page.get_by_text("Model metrics").first.click()
        for group in ("best", "test", "train", "val"):
            page.locator("[role=button][aria-expanded]", has_text=group).first.wait_for(timeout=60_000)
        page.close()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.25)
    raise AssertionError(f"{url} does not answer")

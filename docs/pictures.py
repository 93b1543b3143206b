"""The pictures in the README: python docs/pictures.py

From what is there after `make repro` and `python -m bestepoch.train -m +experiment=how_many_epochs data=mnist_sample`.
Needs Chromium (Debian's package, or CHROMIUM=/path/to/it).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write docs/report.png, docs/mlflow.png and docs/study.png."""
    studies = ROOT.glob("runs/sweeps/*/study/study.png")
    shutil.copyfile(max(studies, key=lambda path: path.stat().st_mtime), ROOT / "docs/study.png")
    place = json.loads((ROOT / "results/train/run.json").read_text())["mlflow"]
    experiment = MlflowClient(place["uri"]).get_run(place["run_id"]).info.experiment_id
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        shoot(browser, (ROOT / "results/evaluate/report.html").as_uri(), ROOT / "docs/report.png", 1000, 1180, 500)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "bestepoch.ui", str(port)]
        server = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
            page = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs/{place['run_id']}/model-metrics"
            url = f"{page}?workflowType=machine_learning"
            shoot(browser, url, ROOT / "docs/mlflow.png", 1400, 1330, 6000, curves_only)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
        browser.close()


def curves_only(page: Page) -> None:
    """Close the assistant and the groups of single numbers, so that the curves are in the picture."""
    page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
    for group in ("best", "memory", "test", "time"):
        page.locator("[role=button][aria-expanded=true]", has_text=re.compile(f"^{group}")).locator(
            "span"
        ).first.click()
    page.wait_for_timeout(3000)


def shoot(
    browser: Browser,
    url: str,
    out: Path,
    width: int,
    height: int,
    milliseconds: int,
    prepare: Callable[[Page], None] = lambda _page: None,
) -> None:
    """A picture of a page, once its charts have had time to draw."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(url, wait_until="load")
    page.wait_for_timeout(milliseconds)
    prepare(page)
    page.screenshot(path=out)
    page.close()


def wait_for(url: str) -> None:
    """Until a server answers, a minute at most."""
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{url} does not answer")


if __name__ == "__main__":
    main()

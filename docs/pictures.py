"""The pictures in README.md and docs/: python docs/pictures.py

Trains what they show, in a copy of the project: the pipeline, a sweep and a study (some minutes). Needs Chromium
(Debian's package, or CHROMIUM=/path/to/it).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

ROOT = Path(__file__).parents[1]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
STUDY = "-m +experiment=how_many_epochs data=mnist_sample"
SWEEP = "-m optimizer=sgd,adamw train.batch_size=50,100,200 data=mnist_sample"


def main() -> None:
    """Write docs/*.png."""
    docs = ROOT / "docs"
    with tempfile.TemporaryDirectory() as scratch, browser() as chromium:
        project = Path(scratch) / "bestepoch"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
        environment = {**os.environ, "PYTHONPATH": str(project / "src")}
        python = [sys.executable, "-m"]
        for command in (
            [*python, "dvc", "repro"],
            [*python, "bestepoch.train", *STUDY.split()],
            [*python, "bestepoch.train", *SWEEP.split()],
        ):
            subprocess.run(command, cwd=project, env=environment, check=True)
        (study,) = project.glob("runs/sweeps/*/study/study.png")
        (sweep,) = {path.parent for path in project.glob("runs/sweeps/*/sweep.json")} - {study.parents[1]}
        promote = [*python, "bestepoch.promote", f"sweep={sweep.relative_to(project)}"]
        subprocess.run(promote, cwd=project, env=environment, check=True)
        shutil.copyfile(study, docs / "study.png")
        shoot(chromium, (project / "results/evaluate/report.html").as_uri(), docs / "report.png", 1000, 1180)
        with ui(project, environment) as links:
            ids = [json.loads(path.read_text())["mlflow"]["run_id"] for path in sorted(sweep.glob("*/run.json"))]
            whole = json.loads((project / "results/train/run.json").read_text())["mlflow"]["run_id"]
            table(chromium, links["best epochs"], docs / "mlflow-best-epochs.png")
            curves(chromium, links["learning curves"], docs / "mlflow-curves.png")
            run(chromium, links["best epochs"], whole, docs / "mlflow-run.png")
            compare(chromium, links["best epochs"], ids, docs / "mlflow-compare.png")
            tensorboard(chromium, links["TensorBoard"], docs / "tensorboard.png")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Chromium, which asks for nothing but the page."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def ui(project: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """What ``make ui`` starts; yields the links that it prints, by their names."""
    ports = []
    with contextlib.ExitStack() as held:  # both at once, or they might be the same
        for _ in range(2):
            free = held.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    server = subprocess.Popen(
        [sys.executable, "-m", "bestepoch.ui", f"PORT={ports[0]}", f"TENSORBOARD_PORT={ports[1]}"],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        links = {}
        for line in server.stdout:
            name, found, address = line.partition(" http")
            if found:
                links[name.strip()] = f"http{address.strip()}"
            if line.startswith("Ctrl-C"):
                break
        if server.poll() is not None:
            raise SystemExit("the servers do not start")
        yield links
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def opened(browser: Browser, url: str, width: int, height: int) -> Page:
    """A page of MLflow's, without the assistant that covers a third of it at the first visit."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(url, wait_until="load")
    with contextlib.suppress(PlaywrightTimeout):  # where there is none
        page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click(timeout=5000)
    return page


def shoot(browser: Browser, url: str, out: Path, width: int, height: int) -> None:
    """A picture of a page that needs no more than to be opened."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(url, wait_until="load")
    page.wait_for_timeout(500)
    page.screenshot(path=out)
    page.close()


def table(browser: Browser, link: str, out: Path) -> None:
    """The runs, by the saved view Best epochs."""
    page = opened(browser, link, 1900, 560)
    page.get_by_role("columnheader", name="best/val_loss").first.wait_for(timeout=60_000)
    finish(page, out)


def curves(browser: Browser, link: str, out: Path) -> None:
    """The charts, by the saved view Learning curves."""
    page = opened(browser, link, 1500, 1100)
    page.locator("svg.main-svg").nth(3).wait_for(timeout=60_000)
    finish(page, out)


def run(browser: Browser, link: str, run_id: str, out: Path) -> None:
    """A run's page: its description, its metrics, its parameters."""
    page = opened(browser, of_run(link, run_id), 1500, 900)
    page.get_by_text("Show more", exact=True).first.click(timeout=60_000)
    finish(page, out)


def compare(browser: Browser, link: str, run_ids: list[str], out: Path) -> None:
    """The page that compares runs."""
    page = opened(browser, of_comparison(link, run_ids), 1500, 900)
    page.get_by_text("Parallel Coordinates Plot").first.wait_for(timeout=60_000)
    finish(page, out)


def tensorboard(browser: Browser, link: str, out: Path) -> None:
    """The images of what was evaluated."""
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    page.goto(of_tab(link, "images"))
    page.get_by_text("confusion/validation").first.wait_for(timeout=60_000)
    finish(page, out)


def of_tab(link: str, tab: str) -> str:
    """The address of a tab of TensorBoard, from that of its curves."""
    return f"{link.partition('?')[0]}#{tab}"


def of_run(link: str, run_id: str, tab: str = "") -> str:
    """The address of a run's page, or of a tab of it, from that of a view."""
    server, _, rest = link.partition("/runs?")
    return f"{server}/runs/{run_id}{f'/{tab}' if tab else ''}?{rest.partition('&')[0]}"


def of_comparison(link: str, run_ids: list[str]) -> str:
    """The address of the page that compares these runs, from that of a view."""
    server, _, rest = link.partition("/#/experiments/")
    asked = f"runs={json.dumps(run_ids)}&experiments={json.dumps([rest.partition('/')[0]])}"
    return f"{server}/#/compare-runs?{asked}&workflowType=machine_learning"


def finish(page: Page, out: Path) -> None:
    """A picture, once the charts have had time to draw."""
    page.wait_for_timeout(5000)
    page.screenshot(path=out)
    page.close()


if __name__ == "__main__":
    main()

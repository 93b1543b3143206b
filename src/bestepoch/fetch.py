"""Stage 1: fetch the files of the chosen data set into ``data/download``."""

from __future__ import annotations

import logging

from bestepoch.base.config.schema import Config
from bestepoch.base.paths import project_root
from bestepoch.base.shutdown import stop_when_dvc_exits
from bestepoch.cli.launch import launch
from bestepoch.fetching.download import fetch

log = logging.getLogger("bestepoch")


def main(config: Config) -> None:
    """Fetch the data set that ``config.data`` describes."""
    stop_when_dvc_exits()
    dataset = fetch(config.data, config.fetch, project_root() / "data/download")
    log.info("%s: %s, in data/download", dataset["name"], dataset["source"])


if __name__ == "__main__":
    launch(main)

"""Stage 2: split ``data/raw`` into training, validation and test in ``data/split``."""

from __future__ import annotations

from bestepoch.base.config.schema import Config
from bestepoch.base.paths import project_root
from bestepoch.base.shutdown import stop_when_dvc_exits
from bestepoch.cli.launch import launch
from bestepoch.splitting.split import log_split, split_data


def main(config: Config) -> None:
    """Split the fetched data as ``config.split`` says."""
    stop_when_dvc_exits()
    data = project_root() / "data"
    log_split(split_data(data / "raw", data / "split", config.split))


if __name__ == "__main__":
    launch(main)

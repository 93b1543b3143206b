"""Say how many epochs are enough, over the runs of a sweep or over several runs."""

from __future__ import annotations

from bestepoch.base.config.schema import Config
from bestepoch.cli.launch import launch
from bestepoch.sweeps.study import find_runs, run_study


def main(config: Config) -> None:
    """Study ``run=runs/sweeps/<name>``, or several runs: ``run=[runs/<a>,runs/<b>]``."""
    runs, out = find_runs(config.run)
    run_study(runs, config.selection, config.tracking, out)


if __name__ == "__main__":
    launch(main)

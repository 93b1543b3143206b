"""Stage 4: choose the best epoch on validation and test it once."""

from __future__ import annotations

from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.base.paths import project_root
from bestepoch.base.shutdown import stop_when_dvc_exits
from bestepoch.cli.launch import launch
from bestepoch.components.data.split import read_pipeline_split
from bestepoch.evaluation.evaluate import evaluate_run
from bestepoch.runs.find import PIPELINE_RUN, find_run
from bestepoch.runs.run import Run


def main(config: Config) -> None:
    """Evaluate the run of ``dvc repro`` into ``results/evaluate``, or another run into ``evaluate`` in its folder."""
    source = find_run(config.run or PIPELINE_RUN)
    info = Run.read(source).info
    if source == project_root() / PIPELINE_RUN:
        stop_when_dvc_exits()
        split = read_pipeline_split()
        if split.checksum != info["data"]["checksum"]:
            raise UsageError("data/split is not what results/train was trained on. Bring both up to date: dvc repro")
        evaluate_run(config, source, project_root() / "results/evaluate", split)
    else:
        from bestepoch.splitting.ensure import find_split_of_run

        evaluate_run(config, source, source / "evaluate", find_split_of_run(info, config))


if __name__ == "__main__":
    launch(main)

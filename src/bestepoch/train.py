"""Stage 3: train one configuration, or with ``-m`` each configuration of a sweep."""

from __future__ import annotations

import dataclasses
import functools
import math

from bestepoch.base.config.overrides import job_overrides
from bestepoch.base.config.schema import Config
from bestepoch.base.paths import project_root
from bestepoch.base.shutdown import stop_when_dvc_exits
from bestepoch.cli.launch import Multirun, launch
from bestepoch.components.data.split import read_pipeline_split
from bestepoch.runs.export import export_run
from bestepoch.runs.timing import SectionTimer
from bestepoch.tracking.client import RunTracking, ensure_worker
from bestepoch.training.distributed import DistributedContext
from bestepoch.training.session import Session, train, train_worker_rank


def main(config: Config) -> float:
    """Train; export the run where DVC asked for it, else log its verdict. Return the value that sweepers optimise."""
    context, timer = DistributedContext.from_env(), SectionTimer.since_process_start()
    if context.is_main:
        ensure_worker(config.tracking)
    with context.process_group():
        if not context.is_main:
            train_worker_rank(config, context)
            return math.nan
        track = functools.partial(RunTracking, config.tracking, selection=config.selection)
        session = Session(job_overrides(), context=context, timer=timer, track=track)
        if config.publish is not None:
            stop_when_dvc_exits()
            run = train(config, read_pipeline_split(), session)
            export_run(run, project_root() / config.publish)
            run.close()
            return math.nan
        from bestepoch.evaluation.summary import report_run, summarize_run
        from bestepoch.splitting.ensure import ensure_split

        session = dataclasses.replace(session, summarize=functools.partial(summarize_run, config.selection))
        run = train(config, ensure_split(config), session)
        run.close()
        return report_run(run, config.selection)


def start_multirun(overrides: list[str], first: Config) -> Multirun:
    """Make the multirun of a command line; a single training is spared its imports."""
    from bestepoch.sweeps.multirun import SweepMultirun

    return SweepMultirun(overrides, first)


if __name__ == "__main__":
    launch(main, start_multirun)

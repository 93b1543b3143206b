"""The split that a run was asked for: the pipeline's own where it is that one, else one made for the run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from bestepoch.base import paths
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.components.data.split import Split
from bestepoch.runs.run import Run

if TYPE_CHECKING:
    pass

import shutil
import tempfile

from filelock import FileLock

from bestepoch.base.config.groups import IdxDataConfig
from bestepoch.base.files import digest
from bestepoch.base.paths import display_path, main_checkout, project_root

log = logging.getLogger("bestepoch")


def read_pipeline_split() -> Split:
    """What ``dvc repro`` made. Raises UsageError where it is not there."""
    return Split.read(project_root() / "data/split")


def ensure_split(config: Config) -> Split:
    """The split of ``data`` and ``split`` as the settings have them.

    A command such as ``python -m bestepoch.train data=kmnist`` needs another one than the pipeline made. That is
    fetched and split into ``data/prepared/``, once, and leaves the pipeline's folders alone.
    """
    wanted = {"data": config.data.name, "split": config.split.model_dump()}
    try:
        there = read_pipeline_split()
        if there.values.get("request") == wanted and _has_same_files(there, config):
            return there
    except UsageError:
        pass
    folder = main_checkout() / "data/prepared" / f"{config.data.name}-{digest(wanted, config.data.model_dump())}"
    if not (folder / "summary.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".lock"):  # the jobs of a sweep all want it at once
            if not (folder / "summary.json").is_file():
                _prepare(config, folder)
    split = Split.read(folder)
    if split.offline_sample:
        log.warning("To ask the mirrors of %s again: rm -r %s", split.requested, display_path(folder))
    return split


def _has_same_files(split: Split, config: Config) -> bool:
    """Whether the split was made of the files that ``conf/data/`` has the checksums of."""
    if split.offline_sample or not isinstance(config.data, IdxDataConfig):
        return True
    wanted = config.data.md5.model_dump(exclude_none=True)
    return all(split.values["files"][role]["md5"] == checksum.lower() for role, checksum in wanted.items())


def _prepare(config: Config, folder: Path) -> None:
    from bestepoch.fetching.download import fetch
    from bestepoch.splitting.split import log_split, split_data

    # stay for the next split of the data set, so that five folds are one download; `fetch` looks at the checksums
    files = folder.parent / ".files" / config.data.name
    fetch(config.data, config.fetch, files, project_root() / "data/raw")
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".beside."))
    try:
        log_split(split_data(files, beside / "split", config.split))
        (beside / "split").rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def find_split_of_run(run: Run, config: Config, pipeline: bool) -> Split:
    """The split that the run was trained on, or none: another one would mix training and test images."""
    data = run.info["data"]
    if pipeline:
        split = read_pipeline_split()
        if split.checksum == data["checksum"]:
            return split
        raise UsageError("data/split is not what results/train was trained on. Bring both up to date: dvc repro")
    for folder in (paths.project_root() / data["folder"], paths.main_checkout() / data["folder"]):
        if (folder / "summary.json").is_file() and (split := Split.read(folder)).checksum == data["checksum"]:
            return split
    wanted = data["request"]
    again = config.model_copy(update={"split": config.split.model_copy(update=wanted["split"])})
    if config.data.name != wanted["data"]:
        raise UsageError(f"The data of this run is not at hand. Add data={wanted['data']} to the command")
    split = ensure_split(again)
    if split.checksum != data["checksum"]:
        raise UsageError(f"{wanted['data']} has changed since this run was trained; train it again")
    return split

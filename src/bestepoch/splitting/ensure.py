"""Find the split that a run needs, or fetch and split the data for it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from bestepoch.base.config.data_sets import IdxDataConfig
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.base.files import digest
from bestepoch.base.paths import display_path, main_checkout, project_root
from bestepoch.components.data.split import Split, read_pipeline_split
from bestepoch.fetching.download import fetch
from bestepoch.splitting.split import log_split, split_data

log = logging.getLogger("bestepoch")


def ensure_split(config: Config) -> Split:
    """Return the split that ``config.data`` and ``config.split`` describe.

    The pipeline's split is returned where it is that one. Else, as for ``python -m bestepoch.train data=kmnist``, the
    data is fetched and split into ``data/prepared/`` once; the pipeline's folders stay as they are.

    Raises:
        UsageError: the data cannot be fetched or split.
    """
    request = {"data": config.data.name, "split": config.split.model_dump()}
    try:
        split = read_pipeline_split()
        if split.values.get("request") == request and _has_same_files(split, config):
            return split
    except UsageError:
        pass
    folder = main_checkout() / "data/prepared" / f"{config.data.name}-{digest(request, config.data.model_dump())}"
    if not (folder / "summary.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".lock"):  # the jobs of a sweep ask for the same split at once
            if not (folder / "summary.json").is_file():
                _prepare(config, folder)
    split = Split.read(folder)
    if split.offline_sample:
        log.warning("To ask the mirrors of %s again: rm -r %s", split.requested, display_path(folder))
    return split


def find_split_of_run(info: dict[str, Any], config: Config) -> Split:
    """Return the split that a run was trained on; another split would mix training and test images.

    Args:
        info: the content of the run's ``run.json``.
        config: names the data set where the split has to be made again.

    Raises:
        UsageError: the split is not there, and the data that ``config`` names does not give it.
    """
    data = info["data"]
    for folder in (project_root() / data["folder"], main_checkout() / data["folder"]):
        if (folder / "summary.json").is_file() and (split := Split.read(folder)).checksum == data["checksum"]:
            return split
    request = data["request"]
    if config.data.name != request["data"]:
        raise UsageError(f"The data of this run is not at hand. Add data={request['data']} to the command")
    same_split = config.split.model_copy(update=request["split"])
    split = ensure_split(config.model_copy(update={"split": same_split}))
    if split.checksum != data["checksum"]:
        raise UsageError(f"{request['data']} has changed since this run was trained; train it again")
    return split


def _has_same_files(split: Split, config: Config) -> bool:
    """Whether the split was made of the files whose checksums ``conf/data/`` has."""
    if split.offline_sample or not isinstance(config.data, IdxDataConfig):
        return True
    checksums = config.data.md5.model_dump(exclude_none=True)
    return all(split.values["files"][role]["md5"] == checksum.lower() for role, checksum in checksums.items())


def _prepare(config: Config, folder: Path) -> None:
    # the downloaded files stay for the next split of the data set, so that five folds are one download
    download = folder.parent / ".files" / config.data.name
    fetch(config.data, config.fetch, download, project_root() / "data/raw")
    staging_dir = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".beside."))
    try:
        log_split(split_data(download, staging_dir / "split", config.split))
        (staging_dir / "split").rename(folder)
    finally:
        shutil.rmtree(staging_dir, ignore_errors=True)

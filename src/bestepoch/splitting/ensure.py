"""The split that a run was asked for: the pipeline's own where it is that one, else one made for the run."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from bestepoch.base.config.schema import Idx, Settings
from bestepoch.base.files import UsageError, digest, home, relative, root
from bestepoch.components.data.split import Summary

log = logging.getLogger("bestepoch")


def pipeline_split() -> Summary:
    """What ``dvc repro`` made. Raises UsageError where it is not there."""
    return Summary.read(root() / "data/split")


def split_for(settings: Settings) -> Summary:
    """The split of ``data`` and ``split`` as the settings have them.

    A command such as ``python -m bestepoch.train data=kmnist`` needs another one than the pipeline made. That is
    fetched and split into ``data/prepared/``, once, and leaves the pipeline's folders alone.
    """
    wanted = {"data": settings.data.name, "split": settings.split.model_dump()}
    try:
        there = pipeline_split()
        if there.values.get("request") == wanted and _same_files(there, settings):
            return there
    except UsageError:
        pass
    folder = home() / "data/prepared" / f"{settings.data.name}-{digest(wanted, settings.data.model_dump())}"
    if not (folder / "summary.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".lock"):  # the jobs of a sweep all want it at once
            if not (folder / "summary.json").is_file():
                _prepare(settings, folder)
    split = Summary.read(folder)
    if split.offline_sample:
        log.warning("To ask the mirrors of %s again: rm -r %s", split.requested, relative(folder))
    return split


def _same_files(split: Summary, settings: Settings) -> bool:
    """Whether the split was made of the files that ``conf/data/`` has the checksums of."""
    if split.offline_sample or not isinstance(settings.data, Idx):
        return True
    wanted = settings.data.md5.model_dump(exclude_none=True)
    return all(split.values["files"][role]["md5"] == checksum.lower() for role, checksum in wanted.items())


def _prepare(settings: Settings, folder: Path) -> None:
    from bestepoch.fetching.download import fetch
    from bestepoch.splitting.split import announce, split

    # stay for the next split of the data set, so that five folds are one download; `fetch` looks at the checksums
    files = folder.parent / ".files" / settings.data.name
    fetch(settings.data, settings.fetch, files, root() / "data/raw")
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".beside."))
    try:
        announce(split(files, beside / "split", settings.split))
        (beside / "split").rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)

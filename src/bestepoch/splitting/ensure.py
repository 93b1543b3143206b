"""Find the split that a run needs, or fetch and split the data for it."""

from __future__ import annotations

import functools
import itertools
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from bestepoch.base.checksums import checksum_of
from bestepoch.base.config.data_sets import DataFiles, IdxDataConfig
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.base.files import digest, md5
from bestepoch.base.paths import display_path, main_checkout, project_root
from bestepoch.components.data.split import Split, read_pipeline_split
from bestepoch.fetching.download import fetch
from bestepoch.fetching.mirrors import find_local_files
from bestepoch.splitting.split import log_split, split_data

log = logging.getLogger("bestepoch")


def ensure_split(config: Config) -> Split:
    """Return the split that ``config.data`` and ``config.split`` describe.

    The pipeline's split is returned where it is that one. Else, as for ``python -m bestepoch.train data=kmnist``, the
    data is fetched and split into ``data/prepared/`` once; the pipeline's folders stay as they are. Files without a
    checksum in ``conf/data/`` that a folder of this machine serves are compared with those that were fetched: where
    they have changed, the data is prepared anew in a folder of its own, so that earlier runs keep their split.

    Raises:
        UsageError: the data cannot be fetched or split.
    """
    sources = _find_sources(config)
    stale: list[str] = []
    request = {"data": config.data.name, "split": config.split.model_dump()}
    try:
        split = read_pipeline_split()
        if split.values["request"] == request and _has_same_files(split, config):
            if not (changed := _changed_source(split, sources)):
                return split
            stale.append(f"{changed} (for the pipeline, type: dvc repro -f fetch && dvc repro)")
    except UsageError:
        pass
    source = config.data.model_dump(exclude={"class_names"})
    base, key = main_checkout() / "data/prepared", f"{config.data.name}-{digest(request, source)}"
    found = _find_prepared(base, key, sources, stale)
    if found is None:
        base.mkdir(parents=True, exist_ok=True)
        with FileLock(base / ".lock"):  # the jobs of a sweep ask for the same split at once
            found = _find_prepared(base, key, sources, [])
            if found is None:
                if stale:
                    log.warning("data     %s: %s is prepared anew", stale[0], config.data.name)
                folder = next(f for n in itertools.count(1) if not (f := base / _numbered(key, n)).exists())
                _prepare(config, folder)
                found = Split.read(folder)
    if found.offline_sample:
        log.warning("To ask the mirrors of %s again: rm -r %s", found.requested, display_path(found.folder))
    return found


def _find_sources(config: Config) -> dict[str, tuple[Path, str]]:
    """Return file and MD5 of each role whose file comes from a folder of this machine and has no checksum in conf."""
    if not isinstance(config.data, IdxDataConfig):
        return {}
    local = find_local_files(config.data)
    free = [role for role, path in local.items() if getattr(config.data.md5, role) is None]
    return {role: (local[role], checksum_of(local[role], functools.partial(md5, local[role]))) for role in free}


def _changed_source(split: Split, sources: dict[str, tuple[Path, str]]) -> str:
    """Return a sentence that names a source which is not what the split was made of, or "" if there is none."""
    if split.offline_sample:
        # with all four files here, fetching cannot end with the sample again
        complete = len(sources) == len(DataFiles.model_fields)
        return f"the files are there now, and {display_path(split.folder)} has the offline sample" if complete else ""
    for role, (path, checksum) in sources.items():
        if split.values["files"][role]["md5"] != checksum:
            return f"{display_path(path)} has changed since {display_path(split.folder)} was made of it"
    return ""


def _find_prepared(base: Path, key: str, sources: dict[str, tuple[Path, str]], stale: list[str]) -> Split | None:
    """Return the newest split of ``key`` that was made of ``sources``, or None; add a reason for each other one."""
    folders = [base / _numbered(key, 1), *base.glob(f"{key}-[0-9]*")]
    summaries = [path for folder in folders if (path := folder / "summary.json").is_file()]
    for path in sorted(summaries, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        split = Split.read(path.parent)
        if not (changed := _changed_source(split, sources)):
            return split
        stale.append(changed)
    return None


def _numbered(key: str, number: int) -> str:
    return key if number == 1 else f"{key}-{number}"


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
    """Whether the split was made of the files that ``conf/data/`` names: by their checksums, else by where they are."""
    data = config.data
    if split.offline_sample or not isinstance(data, IdxDataConfig):
        return True
    names, checksums = data.files.model_dump(), data.md5.model_dump()
    if None in checksums.values() and split.values.get("mirrors") != data.mirrors:
        return False
    fetched = split.values["files"]
    return all(
        fetched[role]["name"] == name and (checksums[role] is None or fetched[role]["md5"] == checksums[role].lower())
        for role, name in names.items()
    )


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

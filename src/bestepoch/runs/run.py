"""A run's folder and its identity: which earlier run the same command goes on with, and what is written about it."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bestepoch.base import files, git, paths
from bestepoch.base.config.schema import Config
from bestepoch.components.data.split import Split
from bestepoch.runs import identity
from bestepoch.runs.identity import (
    TRAINING_FOLDERS,
    describe_environment,
    find_preset,
    format_command,
    make_run_name,
    read_dvc_checksums,
    read_dvc_version,
)
from bestepoch.training.distributed import DistributedContext

log = logging.getLogger("bestepoch")


@dataclass
class Run:
    """One training, live in ``runs/<name>/``; `info` is what ``run.json`` holds."""

    folder: Path
    info: dict[str, Any]
    resumed: bool = False
    _lock: FileLock | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Readable, and the same in MLflow and TensorBoard."""
        return str(self.info["name"])

    @property
    def status(self) -> str:
        """running, finished, killed or failed."""
        return str(self.info["status"])

    def update(self, **values: Any) -> None:
        """Change `info` and put it on the disk."""
        self.info.update(values)
        files.write_json(self.folder / "run.json", self.info)

    def lock(self, wait: float = 0.0) -> bool:
        """Keep other processes from taking the run up; False where one has it for longer than ``wait`` seconds."""
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            return False
        self._lock = lock
        self.info = self.read(self.folder).info  # as it is now that nobody else changes it
        return True

    def close(self) -> None:
        """Let other processes take the run up."""
        if self._lock is not None:
            self._lock.release()

    @classmethod
    def read(cls, folder: Path) -> Run:
        """A run for looking at. Raises UsageError where there is none."""
        return cls(folder, files.read_json(folder / "run.json", "python -m bestepoch.train"))

    @classmethod
    def open(
        cls,
        config: Config,
        data: Split,
        device: str,
        overrides: list[str],
        folder: Path | None = None,
        context: DistributedContext | None = None,
    ) -> Run:
        """The unfinished run of the same configuration, data and code, else a new one.

        Args:
            folder: a sweep's place for this job, where a finished run of the same identity is taken as it is; else
                any folder in ``runs/`` will do and a finished run is left alone.
            world: the processes that train it. Another number of them rounds otherwise, and is another run.
        """
        code = identity.hash_code(TRAINING_FOLDERS)
        context = context or DistributedContext()
        resolved = config.training() | ({"processes": context.size} if context.size > 1 else {})
        fingerprint = files.digest(resolved, data.checksum, code)
        base = paths.main_checkout() / "runs"
        base.mkdir(exist_ok=True)
        if folder is not None:  # also where an earlier configuration of the same name made way for it
            places = [folder, *sorted(folder.parent.glob(f"{folder.name}-[0-9]*"))]
        else:
            places = sorted(path.parent for path in base.glob("*/run.json"))
        for place in places:
            run = cls._take(place, fingerprint, folder is not None, config.publish is not None)
            if run is not None:
                return run
        name = make_run_name(config, data, overrides) if folder is None else folder.name
        place, lock = _create_folder(base if folder is None else folder.parent, name)
        run = cls(place, {}, _lock=lock)
        run.update(
            name=place.name,
            key=uuid.uuid4().hex,
            fingerprint=fingerprint,
            status="running",
            command="dvc repro" if config.publish else format_command(context.launch_command, overrides),
            preset=find_preset(overrides),
            config=resolved,
            code=code,
            data={
                "name": data.name,
                "requested": data.requested,
                "checksum": data.checksum,
                "sizes": data.values["sizes"],
                "shape": list(data.shape),
                "classes": data.classes,
                "pixel_mean": data.values["pixel_mean"],
                "pixel_std": data.values["pixel_std"],
                "folder": paths.display_path(data.folder),
                "request": data.values["request"],
                "dvc": read_dvc_version() if data.folder == paths.project_root() / "data/split" else None,
            },
            git=git.git_state(),
            environment={**describe_environment(), "device": device},
            started=time.time(),
        )
        return run

    @classmethod
    def _take(cls, place: Path, fingerprint: str, finished: bool, to_publish: bool) -> Run | None:
        if not (place / "run.json").is_file():
            return None
        run = cls.read(place)
        if run.info.get("fingerprint") != fingerprint:
            return None
        if not run.lock(wait=1.0):  # others look into it for moments
            if not finished:
                return None
            log.warning("another process is at work on %s; waiting for it", paths.display_path(place))
            run.lock(wait=-1)  # for as long as it takes
        if to_publish and run.info.get("to_publish"):
            # one that was killed before DVC had its results has only the handing over left to do
            finished = run.info.get("published") not in read_dvc_checksums()
            if not finished:
                run.update(to_publish=False)
        if run.status == "finished" and not finished:
            run.close()
            return None
        run.resumed = True
        for part in (place, place / "checkpoints", place / "state"):
            files.remove_partial(part)
        return run


def sweep_lock(folder: Path) -> FileLock:
    """Held by the process that runs the sweep in ``folder``, as long as it lives."""
    return FileLock(folder / ".lock")


def _create_folder(base: Path, name: str) -> tuple[Path, FileLock]:
    """A new folder of our own, ``name`` or ``name-2``, ``name-3`` ..., and its lock."""
    number = 1
    while True:
        place = base / (name if number == 1 else f"{name}-{number}")
        place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place / ".lock")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            files.remove_partial(place)
            if {path.name for path in place.iterdir()} <= {".lock"}:  # new, or of one that was killed right here
                return place, lock
            lock.release()
        number += 1

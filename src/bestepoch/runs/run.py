"""The folder of a run: find the run to continue, or create one; read, lock and update its ``run.json``."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bestepoch.base import files
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.base.git import git_state, has_edited_settings
from bestepoch.base.paths import display_path, main_checkout, project_root
from bestepoch.components.data.split import Split
from bestepoch.runs import identity
from bestepoch.runs.record import read_record
from bestepoch.runs.request import RunOrigin, RunRequest

log = logging.getLogger("bestepoch")


@dataclass
class Run:
    """One training in ``runs/<name>/``; `info` is the content of ``run.json``."""

    folder: Path
    info: dict[str, Any]
    resumed: bool = False
    _lock: FileLock | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Readable name, the same in MLflow and TensorBoard."""
        return str(self.info["name"])

    @property
    def status(self) -> str:
        """One of running, finished, killed and failed."""
        return str(self.info["status"])

    @property
    def original(self) -> Run | None:
        """The run beside this one that this folder is a copy of; None for a run of its own."""
        folder = self.folder.with_name(self.name)
        if folder == self.folder or not (folder / "run.json").is_file():
            return None
        with contextlib.suppress(UsageError):
            run = self.read(folder)
            return run if run.info["uuid"] == self.info["uuid"] else None
        return None

    def update(self, **values: Any) -> None:
        """Change `info` and write it to the disk."""
        self.info.update(values)
        files.write_json(self.folder / "run.json", self.info)

    def lock(self, wait: float = 0.0) -> bool:
        """Lock the run against other processes; return False where one holds it for longer than ``wait`` seconds."""
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            return False
        self._lock = lock
        self.info = self.read(self.folder).info  # another process may have changed it before it let go
        return True

    @property
    def is_locked(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None and self._lock.is_locked

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()

    def is_training(self) -> bool:
        """Return whether another process trains the run; a run whose process is gone becomes a killed one.

        Only the lock tells the two apart: a process that is killed leaves the status as it was.
        """
        if self.status == "running" and self.lock(wait=1.0):  # delivery and other readers hold the lock for moments
            try:
                if self.status == "running":
                    self.update(status="killed")
            finally:
                self.close()
        return self.status == "running"

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run without locking it.

        Raises:
            UsageError: ``folder`` holds no run, or its ``run.json`` is damaged.
        """
        return cls(folder, read_record(folder))

    @classmethod
    def open(cls, config: Config, split: Split, device: str, origin: RunOrigin | None = None) -> Run:
        """Return the unfinished run of the same configuration, data and code, else a new one; locked.

        While another process holds that run, wait; then continue it, or return it as that process finished it. So no
        two processes train the same run side by side.

        Args:
            config: the configuration, with every ``auto`` resolved.
            split: the data.
            device: type of the device, as PyTorch names it.
            origin: who asks for the run; by default this process alone.
        """
        request = RunRequest(config, split, device, origin or RunOrigin())
        base = main_checkout() / "runs"
        base.mkdir(exist_ok=True)
        waited_for: Path | None = None
        while True:
            with FileLock(base / ".lock"):  # another process may begin the same run at this moment
                run = cls._find(base, request, waited_for) or cls._create(base, request)
            if run.is_locked:
                return run
            log.warning("another process is at work on %s; waiting for it", display_path(run.folder))
            run.lock(wait=-1)  # without a limit
            run.close()
            waited_for = run.folder

    @classmethod
    def _find(cls, base: Path, request: RunRequest, waited_for: Path | None) -> Run | None:
        """Return the run to continue or to take as it is, locked unless another process holds it; else None."""
        job = request.origin.folder
        if waited_for is not None:
            folders = [waited_for]
        elif job is not None:
            # a job of another configuration may have the same name and the folder without a number
            folders = [job, *sorted(job.parent.glob(f"{job.name}-[0-9]*"))]
        else:
            folders = sorted(path.parent for path in base.glob("*/run.json"))
        for folder in folders:
            try:
                run = cls._try_resume(folder, request, take_finished=bool(job or waited_for))
            except UsageError as error:  # another run's record must not keep this one from training
                log.warning("warning: %s; the run is passed over", error)
                continue
            if run is not None:
                return run
        return None

    @classmethod
    def _create(cls, base: Path, request: RunRequest) -> Run:
        """Create the folder of a new run with its ``run.json``, and return the run, locked."""
        config, split, origin = request.config, request.split, request.origin
        if origin.folder is None:
            folder, lock = _new_folder(base, identity.make_run_name(config, split, origin.overrides))
        else:
            folder, lock = _new_folder(origin.folder.parent, origin.folder.name)
        run = cls(folder, {}, _lock=lock)
        run.update(
            name=folder.name,
            uuid=uuid.uuid4().hex,
            fingerprint=request.fingerprint,
            status="running",
            command="dvc repro" if config.publish else identity.format_command(origin.launch_command, origin.overrides),
            again=_format_again(request),
            experiment=identity.find_preset(origin.overrides),
            config=request.values | {"data": split.name},  # of the sample where that stands in
            code=request.code,
            data={
                "name": split.name,
                "requested": split.requested,
                "checksum": split.checksum,
                "sizes": split.values["sizes"],
                "shape": list(split.shape),
                "classes": split.classes,
                "pixel_mean": split.values["pixel_mean"],
                "pixel_std": split.values["pixel_std"],
                "folder": display_path(split.folder),
                "request": split.values["request"],
                "dvc": identity.read_dvc_version() if split.folder == project_root() / "data/split" else None,
            },
            git=git_state(),
            environment={**identity.describe_environment(), "device": request.device},
            started=time.time(),
        )
        return run

    @classmethod
    def _try_resume(cls, folder: Path, request: RunRequest, take_finished: bool) -> Run | None:
        """Return the run in ``folder`` if it is to be continued, locked unless another process holds it; else None."""
        if not (folder / "run.json").is_file():
            return None
        run = cls.read(folder)
        if run.info.get("fingerprint") != request.fingerprint or run.original is not None:
            return None
        unpublished = request.config.publish is not None and run.info.get("to_publish")
        if run.status != "finished":
            take_finished = True  # another process may finish it before this one has the lock
        elif not (take_finished or unpublished):
            return None
        if not run.lock(wait=1.0):  # delivery and other readers hold the lock for moments
            return run
        if unpublished:
            # a finished run that was killed before DVC had its results only has to be exported
            exported = run.info.get("published") in identity.read_dvc_checksums()
            if exported:
                run.update(to_publish=False)
            take_finished = take_finished or not exported
        if run.status == "finished" and not take_finished:
            run.close()
            return None
        run.resumed = True
        for part in (folder, folder / "checkpoints", folder / "state"):
            files.remove_partial(part)
        return run


def _format_again(request: RunRequest) -> str | None:
    """Return the command with all settings where the one that was typed also read uncommitted changes of files."""
    if request.config.publish or not has_edited_settings():
        return None
    values = request.config.training() | {"data": request.split.requested}
    return identity.format_settings(request.origin.launch_command, values)


def sweep_lock(folder: Path) -> FileLock:
    """Return the lock that the process of the sweep in ``folder`` holds for as long as it lives."""
    return FileLock(folder / ".lock")


def _new_folder(base: Path, name: str) -> tuple[Path, FileLock]:
    """Create ``name``, or the first free one of ``name-2``, ``name-3`` ..., and return it with its lock."""
    number = 1
    while True:
        folder = base / (name if number == 1 else f"{name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            files.remove_partial(folder)
            if {path.name for path in folder.iterdir()} <= {".lock"}:  # new, or of a process killed right here
                return folder, lock
            lock.release()
        number += 1

"""The folder of a run: find the run to continue, or create one; read, lock and update its ``run.json``."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bestepoch.base import files
from bestepoch.base.config.schema import Config
from bestepoch.base.git import git_state
from bestepoch.base.paths import display_path, main_checkout, project_root
from bestepoch.components.data.split import Split
from bestepoch.runs import identity

log = logging.getLogger("bestepoch")


@dataclass(frozen=True)
class RunOrigin:
    """Who asks for a run and how.

    Args:
        overrides: Hydra overrides of the command line.
        folder: the folder of a sweep's job. A finished run of the same identity in it is taken as it is; without a
            folder, a run of the same identity in ``runs/`` is continued and a finished one is left alone.
        processes: number of processes that train; another number rounds differently and is another run.
        launch_command: how the command begins that starts as many processes.
    """

    overrides: Sequence[str] = ()
    folder: Path | None = None
    processes: int = 1
    launch_command: Sequence[str] = ("python",)


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

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run without locking it.

        Raises:
            UsageError: ``folder`` holds no run.
        """
        return cls(folder, files.read_json(folder / "run.json", "python -m bestepoch.train"))

    @classmethod
    def open(cls, config: Config, split: Split, device: str, origin: RunOrigin | None = None) -> Run:
        """Return the unfinished run of the same configuration, data and code, else a new one; locked.

        Waits for as long as another process holds the folder of a sweep's job.

        Args:
            config: the configuration, with every ``auto`` resolved.
            split: the data.
            device: type of the device, as PyTorch names it.
            origin: who asks for the run; by default this process alone.
        """
        origin = origin or RunOrigin()
        code = identity.hash_training_code()
        values = config.training() | ({"processes": origin.processes} if origin.processes > 1 else {})
        fingerprint = files.digest(values, split.checksum, code)
        base = main_checkout() / "runs"
        base.mkdir(exist_ok=True)
        if origin.folder is not None:
            # a job of another configuration may have the same name and the folder without a number
            folders = [origin.folder, *sorted(origin.folder.parent.glob(f"{origin.folder.name}-[0-9]*"))]
        else:
            folders = sorted(path.parent for path in base.glob("*/run.json"))
        for folder in folders:
            run = cls._try_resume(folder, fingerprint, origin.folder is not None, config.publish is not None)
            if run is not None:
                return run
        if origin.folder is None:
            folder, lock = _new_folder(base, identity.make_run_name(config, split, origin.overrides))
        else:
            folder, lock = _new_folder(origin.folder.parent, origin.folder.name)
        run = cls(folder, {}, _lock=lock)
        run.update(
            name=folder.name,
            key=uuid.uuid4().hex,
            fingerprint=fingerprint,
            status="running",
            command="dvc repro" if config.publish else identity.format_command(origin.launch_command, origin.overrides),
            preset=identity.find_preset(origin.overrides),
            config=values,
            code=code,
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
            environment={**identity.describe_environment(), "device": device},
            started=time.time(),
        )
        return run

    @classmethod
    def _try_resume(cls, folder: Path, fingerprint: str, take_finished: bool, for_export: bool) -> Run | None:
        """Lock and return the run in ``folder`` if it has the fingerprint and is to be continued, else None."""
        if not (folder / "run.json").is_file():
            return None
        run = cls.read(folder)
        if run.info.get("fingerprint") != fingerprint:
            return None
        if not run.lock(wait=1.0):  # delivery and other readers hold the lock for moments
            if not take_finished:
                return None
            log.warning("another process is at work on %s; waiting for it", display_path(folder))
            run.lock(wait=-1)  # without a limit
        if for_export and run.info.get("to_publish"):
            # a finished run that was killed before DVC had its results only has to be exported
            take_finished = run.info.get("published") not in identity.read_dvc_checksums()
            if not take_finished:
                run.update(to_publish=False)
        if run.status == "finished" and not take_finished:
            run.close()
            return None
        run.resumed = True
        for part in (folder, folder / "checkpoints", folder / "state"):
            files.remove_partial(part)
        return run


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

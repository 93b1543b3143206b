"""A run's folder and its identity: which earlier run the same command goes on with, and what is written about it."""

from __future__ import annotations

import contextlib
import logging
import platform
import re
import shlex
import shutil
import socket
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bestepoch.base import files
from bestepoch.base.config.compose import MENUS
from bestepoch.base.config.schema import Settings
from bestepoch.components.data.split import Summary, md5
from bestepoch.training.distributed import World

log = logging.getLogger("bestepoch")

# The modules whose code decides the numbers that a training gives.
TRAINING_CODE = (
    *("base/config/schema", "components/data/split", "components/models/networks"),
    *("components/schedules/learning_rate", "evaluation/selection"),
    *("training/batch_norm", "training/cuda_graph", "training/distributed", "training/loop", "training/optimizers"),
    *("training/precision", "training/session", "training/state", "training/trainer"),
)


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
        settings: Settings,
        data: Summary,
        device: str,
        overrides: list[str],
        folder: Path | None = None,
        world: World | None = None,
    ) -> Run:
        """The unfinished run of the same configuration, data and code, else a new one.

        Args:
            folder: a sweep's place for this job, where a finished run of the same identity is taken as it is; else
                any folder in ``runs/`` will do and a finished run is left alone.
            world: the processes that train it. Another number of them rounds otherwise, and is another run.
        """
        code = files.code_hashes(TRAINING_CODE)
        world = world or World()
        config = settings.training() | ({"processes": world.size} if world.size > 1 else {})
        fingerprint = files.digest(config, data.checksum, code)
        base = files.home() / "runs"
        base.mkdir(exist_ok=True)
        if folder is not None:  # also where an earlier configuration of the same name made way for it
            places = [folder, *sorted(folder.parent.glob(f"{folder.name}-[0-9]*"))]
        else:
            places = sorted(path.parent for path in base.glob("*/run.json"))
        for place in places:
            run = cls._take(place, fingerprint, folder is not None, settings.publish is not None)
            if run is not None:
                return run
        name = _name(settings, data, overrides) if folder is None else folder.name
        place, lock = _claim(base if folder is None else folder.parent, name)
        run = cls(place, {}, _lock=lock)
        run.update(
            name=place.name,
            key=uuid.uuid4().hex,
            fingerprint=fingerprint,
            status="running",
            command="dvc repro" if settings.publish else _command(world.launcher, overrides),
            preset=_preset(overrides),
            config=config,
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
                "folder": files.relative(data.folder),
                "request": data.values["request"],
                "dvc": _dvc_version() if data.folder == files.root() / "data/split" else None,
            },
            git=files.git_state(),
            environment={**_environment(), "device": device},
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
            log.warning("another process is at work on %s; waiting for it", files.relative(place))
            run.lock(wait=-1)  # for as long as it takes
        if to_publish and run.info.get("to_publish"):
            # one that was killed before DVC had its results has only the handing over left to do
            finished = run.info.get("published") not in _dvc_lock()
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


def _claim(base: Path, name: str) -> tuple[Path, FileLock]:
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


def _command(launcher: list[str], overrides: list[str]) -> str:
    """What to type to have this run again; an override that only says `as it is` is left out."""
    return shlex.join([*launcher, "-m", "bestepoch.train", *(line for line in overrides if "${" not in line)])


def _preset(overrides: list[str]) -> str | None:
    """The file of conf/experiment/ that the configuration came from."""
    given = [line.partition("=")[2] for line in overrides if line.lstrip("+").startswith("experiment=")]
    return given[-1] if given else None


def _dvc_version() -> str | None:
    """The checksum that DVC gave the raw data set, as ``data.dvc`` has it."""
    from omegaconf import OmegaConf

    with contextlib.suppress(OSError, LookupError, TypeError):
        values: Any = OmegaConf.to_container(OmegaConf.load(files.root() / "data.dvc"))
        return str(values["outs"][0]["md5"])
    return None


def _dvc_lock() -> set[str]:
    """The checksums of what DVC has; it writes them when a stage has ended well."""
    path = files.root() / "dvc.lock"
    return set(re.findall(r"md5: (\w+)", path.read_text(encoding="utf-8"))) if path.is_file() else set()


def _name(settings: Settings, data: Summary, overrides: list[str]) -> str:
    return slug([data.name, settings.model.name, settings.optimizer.name, f"s{settings.seed}", *told(overrides)])


def told(overrides: list[str]) -> list[str]:
    """The overrides that a run's name does not say by itself, `short`."""
    said = ("data", "model", "optimizer", "seed", "publish")
    return [short(line) for line in overrides if line.partition("=")[0] not in said and not line.endswith("=null")]


def short(override: str) -> str:
    """An override as part of a name: ``optimizer.lr=0.01`` is ``lr0.01``, ``model=mlp`` is ``mlp``."""
    key, _, value = override.lstrip("+~").partition("=")
    if "${" in value:
        return ""  # MLproject's way to say: as it is
    return value if key in (*MENUS, "experiment") else key.rsplit(".", 1)[-1] + value


def slug(parts: list[str]) -> str:
    """A folder's name, at most 100 characters, of letters, digits, ``.``, ``_`` and ``-`` alone.

    So it needs no quotes in a shell, nor in Hydra, where ``,`` and ``=`` have meanings: ``run=runs/<name>``.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, parts)))[:100].strip("._-")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; an entry's name stands under the menu's own: ``optimizer``, ``optimizer.lr``."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        path = prefix if key == "name" and prefix and prefix != "device" else f"{prefix}.{key}" if prefix else key
        out.update(flat(value, path) if isinstance(value, dict) else {path: value})
    return out


def _environment() -> dict[str, Any]:
    """What bit-identity depends on besides the configuration: promised for equal values of these, no further."""
    import torch

    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
    }


def publish(run: Run, out: Path) -> None:
    """Copy what ``dvc.yaml`` declares into ``out``, as a whole: beside, then renamed."""
    beside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    # copies, not links: DVC makes its cache read-only, and a run may be continued
    for name in ("iterations.csv", "epochs.csv"):
        shutil.copyfile(run.folder / name, beside / name)
    info = {key: value for key, value in run.info.items() if key not in ("to_publish", "published")}
    files.write_json(beside / "run.json", info)
    published = md5(beside / "run.json")
    # not what a kill left half written
    shutil.copytree(run.folder / "checkpoints", beside / "checkpoints", ignore=shutil.ignore_patterns(".*"))
    out.mkdir(parents=True, exist_ok=True)
    for name in sorted(path.name for path in beside.iterdir()):
        target = out / name
        shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
        (beside / name).rename(target)
    shutil.rmtree(beside)
    run.update(published=published)  # DVC has it once its lock, written after this process, holds the checksum

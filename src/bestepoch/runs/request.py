"""What a training asks for: the configuration, the data, the device and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bestepoch.base import files
from bestepoch.base.config.schema import Config
from bestepoch.components.data.split import Split
from bestepoch.runs import identity


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


@dataclass(frozen=True)
class RunRequest:
    """The run that is asked for: what decides its numbers, where they are computed, and who asks."""

    config: Config
    split: Split
    device: str
    origin: RunOrigin
    code: dict[str, str] = field(default_factory=identity.hash_training_code)

    @cached_property
    def values(self) -> dict[str, Any]:
        """The settings that decide the numbers."""
        processes = self.origin.processes
        return self.config.training() | ({"processes": processes} if processes > 1 else {})

    @cached_property
    def fingerprint(self) -> str:
        """Hash that is equal for runs that compute the same numbers."""
        return files.digest(self.values, self.split.checksum, self.code)

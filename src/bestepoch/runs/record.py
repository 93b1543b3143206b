"""Read and check ``run.json``, the record of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from bestepoch.base import files
from bestepoch.base.errors import UsageError
from bestepoch.base.paths import display_path


class RunRecord(BaseModel):
    """The keys of ``run.json`` that every run has from its beginning; more are allowed."""

    name: str
    uuid: str
    fingerprint: str
    status: Literal["running", "finished", "killed", "failed"]
    config: dict[str, Any]
    code: dict[str, str]
    data: dict[str, Any]
    git: dict[str, Any]
    environment: dict[str, Any]
    started: float


# Keys of earlier versions, and what they are called now.
RENAMED_KEYS = {
    "spent": "time_by_section",
    "asked": "finish_requested_at",
    "key": "uuid",
    "preset": "experiment",
    "continues": "extended_from",
}


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of ``run.json`` in the folder of a run.

    Raises:
        UsageError: the file is missing or damaged; the message names the place.
    """
    path = folder / "run.json"
    info: dict[str, Any] = files.read_json(path, "python -m bestepoch.train")
    if isinstance(info, dict):
        info = {RENAMED_KEYS.get(key, key): value for key, value in info.items()}
    try:
        RunRecord.model_validate(info)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise UsageError(
            f"{display_path(path)} is damaged at {place}: {first['msg']}. Restore the file, or delete its folder"
        ) from None
    return info

"""A damaged `run.json` is named with the place, and what a run shares with an earlier one is all but its length."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import live
from bestepoch.base.errors import UsageError
from bestepoch.runs.run import Run
from bestepoch.training.extend import _lineage_key

WHOLE: dict[str, Any] = {
    **live.RECORD,
    "config": {"stopping": {"name": "none"}, "train": {"epochs": 3, "iterations": None, "batch_size": 100}},
    "data": {"checksum": "d"},
}


def written(folder: Path, text: str) -> Path:
    (folder / "run.json").write_text(text)
    return folder


def test_a_whole_record_is_read(tmp_path: Path) -> None:
    assert Run.read(written(tmp_path, json.dumps(WHOLE | {"more": 1}))).info == WHOLE | {"more": 1}


def test_the_keys_of_earlier_versions_are_read(tmp_path: Path) -> None:
    old = {key: value for key, value in WHOLE.items() if key != "uuid"} | {"key": "k", "spent": {"data": 1.0}}
    assert Run.read(written(tmp_path, json.dumps(old))).info == {**WHOLE, "uuid": "k", "time_by_section": {"data": 1.0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable"),
        ("", "is not readable"),
        ("[]", "is damaged at the whole file"),
        ("null", "is damaged at the whole file"),
        *((json.dumps({k: v for k, v in WHOLE.items() if k != key}), f"is damaged at {key}") for key in WHOLE),
        (json.dumps(WHOLE | {"status": "done"}), "is damaged at status"),
        (json.dumps(WHOLE | {"config": []}), "is damaged at config"),
    ],
)
def test_a_damaged_record_is_named_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"run.json {message}"):
        Run.read(written(tmp_path, text))


@pytest.mark.parametrize("changed", ["epochs", "iterations", "batch_size", "a_setting_of_the_future"])
def test_runs_share_epochs_only_if_all_but_the_length_is_equal(changed: str) -> None:
    other = copy.deepcopy(WHOLE)
    other["config"]["train"][changed] = 7
    same = _lineage_key(Run(Path("a"), WHOLE)) == _lineage_key(Run(Path("b"), other))
    assert same == (changed in ("epochs", "iterations"))

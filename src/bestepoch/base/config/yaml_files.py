"""Read YAML files of a bounded size: a few lines of YAML can stand for more values than a machine can hold."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bestepoch.base import paths
from bestepoch.base.errors import UsageError

# The largest file of this project has 6 kB, 140 values and 5 levels.
MAX_BYTES = 256_000
MAX_VALUES = 5_000
MAX_DEPTH = 50
PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there


def load_yaml(path: Path) -> Any:
    """Return the content of a YAML file, with interpolations as they are written.

    Raises:
        UsageError: the file is missing, is not YAML, or stands for too many values.
    """
    text = read_yaml_text(path)
    try:
        return OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None


def read_yaml_text(path: Path) -> str:
    """Return the text of a YAML file that is safe to load; whether it is YAML at all shows when it is loaded.

    Raises:
        UsageError: the file is missing, is not text in UTF-8, or stands for too many values.
    """
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= MAX_BYTES else ""
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if size > MAX_BYTES:
        raise _too_much(path, f"has {size:,} bytes", f"{MAX_BYTES:,}")
    with contextlib.suppress(yaml.YAMLError):
        _check_values(path, text)
    return text


def read_top_level_value(path: Path, key: str) -> Any:
    """Return one value of a YAML mapping without composing; None if the file does not have it or is not YAML."""
    text = read_yaml_text(path)
    try:
        values = yaml.load(text, Loader=PARSER)
    except (yaml.YAMLError, ValueError):
        return None
    return values.get(key) if isinstance(values, dict) else None


def _check_values(path: Path, text: str) -> None:
    """Raise UsageError for too many values, where an alias counts as all values of its anchor, or too many levels."""
    total = 0
    sizes: dict[str, int] = {}  # of each finished anchor
    opened: list[tuple[str | None, int]] = []  # anchor of each enclosing list or mapping, and the total before it
    for event in yaml.parse(text, Loader=PARSER):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = total - before
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in opened):
                raise UsageError(
                    f"{paths.display_path(path)}, line {line}: *{event.anchor} stands inside &{event.anchor}, so it "
                    "would never end. Write the values out"
                )
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
        else:
            opened.append((event.anchor, total))
            total += 1
            if len(opened) > MAX_DEPTH:
                raise _too_much(path, f"has more than {MAX_DEPTH} levels in line {line}", f"{MAX_DEPTH}")
        if total > MAX_VALUES:
            raise _too_much(path, f"stands for {total:,} values and more in line {line}", f"{MAX_VALUES:,}")


def _too_much(path: Path, what: str, limit: str) -> UsageError:
    return UsageError(
        f"{paths.display_path(path)} {what}; at most {limit} are read. Take out what no setting needs, or restore it "
        f"with: git checkout {paths.display_path(path)}"
    )


def _unreadable(path: Path, error: BaseException) -> UsageError:
    reason = " ".join(str(error).replace(' "<unicode string>",', "").split()) or type(error).__name__
    return UsageError(f"{paths.display_path(path)} is not readable: {reason}")

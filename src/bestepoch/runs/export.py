"""Hand a finished run over to DVC."""

from __future__ import annotations

import shutil
from pathlib import Path

from bestepoch.base import files
from bestepoch.base.files import md5
from bestepoch.runs.run import Run


def export_run(run: Run, out: Path) -> None:
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

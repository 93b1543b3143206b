"""Export a finished run to the folder that DVC tracks."""

from __future__ import annotations

import shutil
from pathlib import Path

from bestepoch.base import files
from bestepoch.base.errors import UsageError
from bestepoch.runs import identity
from bestepoch.runs.run import Run


def export_run(run: Run, out: Path) -> None:
    """Copy the outputs that ``dvc.yaml`` declares into ``out``: write beside, then rename.

    Raises:
        UsageError: the training code was edited while the run trained.
    """
    if identity.hash_training_code() != run.info["code"]:
        # DVC hashes the code after the command and would vouch for code that did not train this run
        raise UsageError("The training code was edited while it ran. Run it again: dvc repro")
    staging_dir = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging_dir, ignore_errors=True)
    staging_dir.mkdir(parents=True)
    # copies instead of links: DVC makes its cache read-only, and a run may be continued
    for name in ("iterations.csv", "epochs.csv"):
        shutil.copyfile(run.folder / name, staging_dir / name)
    info = {key: value for key, value in run.info.items() if key not in ("to_publish", "published")}
    files.write_json(staging_dir / "run.json", info)
    checksum = files.md5(staging_dir / "run.json")
    # hidden files are what a kill left of a checkpoint
    shutil.copytree(run.folder / "checkpoints", staging_dir / "checkpoints", ignore=shutil.ignore_patterns(".*"))
    out.mkdir(parents=True, exist_ok=True)
    for name in sorted(path.name for path in staging_dir.iterdir()):
        target = out / name
        shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
        (staging_dir / name).rename(target)
    shutil.rmtree(staging_dir)
    run.update(published=checksum)  # once dvc.lock holds this checksum, DVC has the run

"""A checkpoint from somewhere else is data: nothing in the project would run what is in it."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest
import torch

from bestepoch.base import paths
from bestepoch.base.errors import UsageError
from bestepoch.runs import checkpoint

UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def unpickles(source: str) -> list[str]:
    """What in a module's code could run what is in a file."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.partition(".")[0] in UNPICKLERS:
                found.append(module)
            # by a name of their own they would not be seen below
            found += [f"{module}.load" for a in node.names if module in ("torch", "numpy") and a.name == "load"]
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if (
                (name == "torch.load" and given.get("weights_only") != "True")
                or given.get("allow_pickle", "False") != "False"
                or name.endswith(("read_pickle", "pytorch.load_model", "pyfunc.load_model", "hub.load"))
            ):
                found.append(ast.unparse(node))
    return found


def test_nothing_in_the_project_unpickles() -> None:
    sources = {str(path.relative_to(paths.PACKAGE)): path.read_text() for path in paths.PACKAGE.rglob("*.py")}
    assert {name: found for name, source in sources.items() if (found := unpickles(source))} == {}
    # the calls that are looked at are there
    assert "torch.load(" in sources["runs/checkpoint.py"] and "np.load(" in sources["components/data/split.py"]


@pytest.mark.parametrize(
    "flaw",
    [
        "import pickle",
        "import joblib as files",
        "from pickle import loads",
        "def f():\n    import dill",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=trusted)",
        "torch.load(path, **options)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=trusted)",
        "pd.read_pickle(path)",
    ],
)
def test_a_way_to_unpickle_would_be_found(flaw: str) -> None:
    assert unpickles(flaw)
    assert not unpickles("torch.load(path, weights_only=True)\nnp.load(path)\nnp.load(path, allow_pickle=False)")


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("made", ["as a checkpoint", "as an old checkpoint", "as a plain pickle"])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    trace, path = tmp_path / "trace", tmp_path / "state/iteration-000000007.pt"
    path.parent.mkdir()
    content = {"network": {}, "iteration": 7, "more": Malicious(trace)}
    if made == "as a plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=made == "as a checkpoint")
    with pytest.raises(UsageError, match=r"state/iteration-000000007\.pt cannot be read: "):
        checkpoint.load(path)
    assert checkpoint.load_newest_state(tmp_path) is None
    assert not trace.exists()
    # it would
    torch.load(path, weights_only=False) if made != "as a plain pickle" else pickle.loads(path.read_bytes())
    assert trace.exists()


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(UsageError, match=r"list\.pt is not a checkpoint"):
        checkpoint.load(tmp_path / "list.pt")

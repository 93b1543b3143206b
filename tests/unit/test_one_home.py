"""Every value has one home, and every stage tracks the values and the code that it reads."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

import live
from bestepoch import evaluate, train
from bestepoch.base.config import compose, data_sets, groups, schema
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.components.data.split import Split
from bestepoch.runs import identity
from bestepoch.runs.run import Run
from bestepoch.splitting import ensure

CHECKOUT = live.CHECKOUT
CONF = CHECKOUT / "conf"
PACKAGE = CHECKOUT / "src/bestepoch"
PARAMS = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
CONFIG = yaml.safe_load((CONF / "config.yaml").read_text())
PIPELINE = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text())
NAMED = [next(iter(line)) for line in CONFIG["defaults"] if isinstance(line, dict)]
MENUS = [name for name in NAMED if "/" not in name and not name.startswith("optional ")]
CHOICES = [(menu, path.stem) for menu in MENUS for path in sorted((CONF / menu).glob("*.yaml"))]
# folders whose files set values of others on purpose, or Hydra's own; no defaults list names them
PRESETS = {"experiment", "hydra", "local"}

Leaf = tuple[str, ...]


@pytest.fixture(autouse=True)
def at_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)


def leaves(values: Any, path: Leaf = ()) -> Iterator[tuple[Leaf, Any]]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, (*path, str(key)))
    else:
        yield path, values


def at(values: Any, path: Leaf) -> Any:
    for part in path:
        values = values[part]
    return values


# ---------------------------------------------------------------- one home


def check_one_home(params: Any, conf: Any) -> None:
    """Every value of params.yaml is read by config.yaml, at the same path, and nowhere else."""
    chosen = {menu: value for line in conf["defaults"] if isinstance(line, dict) for menu, value in line.items()}
    for path, _ in leaves(params):
        reference = f"${{params:{'.'.join(path)}}}"
        if path[0] in MENUS:
            assert chosen[path[0]] == reference, f"the defaults list reads {path[0]} from elsewhere"
            assert path[0] not in conf, f"{path[0]} is a menu and a key of config.yaml"
        else:
            assert at(conf, path) == reference, f"{'.'.join(path)} has a second value in config.yaml"
    for path, value in leaves({k: v for k, v in conf.items() if k != "defaults"}):
        if isinstance(value, str) and "${params:" in value:
            assert value == f"${{params:{'.'.join(path)}}}", f"{'.'.join(path)} reads another place of params.yaml"
            assert at(params, path) is not params


def test_each_value_of_params_yaml_is_read_at_its_own_path_and_stands_nowhere_else() -> None:
    assert len(list(leaves(PARAMS))) >= 14
    check_one_home(PARAMS, CONFIG)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda conf: conf["train"].update(epochs=6),
        lambda conf: conf.update(seed="${params:split.seed}"),
        lambda conf: conf["split"].update(seed="${params:seed}"),
        lambda conf: conf["defaults"].__setitem__(2, {"optimizer": "adamw"}),
        lambda conf: conf.update(optimizer={"lr": 0.1}),
        lambda conf: conf["fetch"].update(retries="${params:seed}"),
    ],
)
def test_a_second_home_would_be_found(spoil: Callable[[Any], None]) -> None:
    conf = yaml.safe_load((CONF / "config.yaml").read_text())
    spoil(conf)
    with pytest.raises(AssertionError, match=r"second value|reads another|from elsewhere|is a menu"):
        check_one_home(PARAMS, conf)


def test_the_menus_are_the_folders_and_the_settings_know_them() -> None:
    assert sorted(MENUS) == sorted({path.name for path in CONF.iterdir() if path.is_dir()} - PRESETS)
    assert tuple(MENUS) == groups.CONFIG_GROUPS
    assert set(Config.model_fields) == {*MENUS, *CONFIG} - {"defaults", "hydra"}
    assert len(CHOICES) >= 20


@pytest.mark.parametrize(("menu", "entry"), CHOICES)
def test_a_menu_file_holds_only_what_belongs_to_its_choice(menu: str, entry: str) -> None:
    text = (CONF / menu / f"{entry}.yaml").read_text()
    assert "@package" not in text  # so its keys live below the menu's name
    values = yaml.safe_load(text)
    assert "defaults" not in values  # nothing comes in from a file that no stage tracks
    assert "${" not in text  # nothing is read from elsewhere
    assert values["name"] == entry
    assert menu not in CONFIG
    # composed, they are the file's own values, and only what is optional is added
    composed = getattr(compose.load_config([f"{menu}={entry}"], False)[1], menu).model_dump()
    if values.get("mode") == "auto":
        composed["mode"] = "auto"  # the metric's own direction
    assert {path: value for path, value in leaves(composed) if value is not None} == {
        path: value for path, value in leaves(values) if value is not None
    }


def test_the_schema_is_no_second_home() -> None:
    values = [value for module in (schema, groups, data_sets) for value in vars(module).values()]
    classes = {c for c in values if isinstance(c, type) and issubclass(c, BaseModel) and c is not BaseModel}
    assert len(classes) > 25
    with_default = {
        f"{c.__name__}.{name}" for c in classes for name, field in c.model_fields.items() if not field.is_required()
    }
    # what a data set may have: null stands for "has none", no value is named
    optional = {f"Checksums.{role}" for role in data_sets.Checksums.model_fields} | {
        "IdxDataConfig.md5",
        "IdxDataConfig.fallback",
        "IdxDataConfig.class_names",
        "SampleDataConfig.class_names",
    }
    assert with_default == optional
    assert all(field.default is None for field in data_sets.Checksums.model_fields.values())
    assert data_sets.IdxDataConfig.model_fields["fallback"].default is None
    assert data_sets.IdxDataConfig.model_fields["md5"].default == data_sets.Checksums()


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_mlproject_reads_its_defaults_from_params_yaml(name: str) -> None:
    entry = yaml.safe_load((CHECKOUT / "MLproject").read_text())["entry_points"][name]
    keys = dict(re.findall(r"(\S+)=\{(\w+)\}", entry["command"]))
    assert sorted(keys.values()) == sorted(entry["parameters"])
    for key, parameter in keys.items():
        assert entry["parameters"][parameter]["default"] == f"${{params:{key}}}"
        assert at(PARAMS, tuple(key.split("."))) is not None


# ---------------------------------------------------------------- the code that a stage runs


STAGES = list(PIPELINE["stages"])
# cli/ changes no output; trackers are no output of training, and `sync` delivers to them again
NOT_A_DEPENDENCY = {"fetch": {"cli"}, "split": {"cli"}, "train": {"cli", "tracking"}, "evaluate": {"cli"}}
# what DVC's command does not come to: a sweep, a split other than the pipeline's, the verdict of a run from the shell
NOT_UNDER_DVC: dict[str, set[str]] = {
    "fetch": set(),
    "split": set(),
    "train": {"sweeps", "splitting", "evaluation"},
    "evaluate": {"splitting"},
}


@cache
def source(module: str) -> str:
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text()


def is_module(name: str) -> bool:
    return (PACKAGE / f"{name.replace('.', '/')}.py").is_file()


@cache
def imports(module: str) -> frozenset[str]:
    """The package's modules that ``module`` imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bestepoch"):
            name = str(node.module).removeprefix("bestepoch").lstrip(".")
            for alias in node.names:
                inner = f"{name}.{alias.name}".lstrip(".")
                found.add(inner if is_module(inner) else name)
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module} imports relatively"
    assert all(is_module(name) for name in found), found
    return frozenset(found)


def modules(stage: str) -> set[str]:
    """What a stage imports when DVC runs it."""
    seen: set[str] = set()
    todo = [stage]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += [name for name in imports(module) if name.partition(".")[0] not in NOT_UNDER_DVC[stage]]
    return seen


def tracked_code(stage: str) -> set[str]:
    deps = PIPELINE["stages"][stage]["deps"]
    return {dep.removeprefix("src/bestepoch/") for dep in deps if dep.startswith("src/")}


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_its_command_and_the_folders_that_it_imports(stage: str) -> None:
    folders = {module.partition(".")[0] for module in modules(stage) if "." in module}
    assert tracked_code(stage) == {f"{stage}.py"} | folders - NOT_A_DEPENDENCY[stage]
    assert len(tracked_code(stage)) <= 6


def trackers_imported(text: str) -> set[str]:
    """MLflow, TensorBoard and their parts, imported anywhere in a module's code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name for name in names if re.match(r"(mlflow|tensorboard|torch\.utils\.tensorboard)\b", name)}


def test_only_tracking_imports_a_tracker() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): trackers_imported(path.read_text()) for path in PACKAGE.rglob("*.py")
    }
    outside = {name for name, names in found.items() if names and not name.startswith("tracking/")}
    # what is private of MLflow stands in one module, and what TensorBoard shows is made of its summaries
    assert outside <= {"base/private_api.py", "evaluation/tensorboard_figures.py", "evaluation/projector.py"}
    assert found["tracking/mlflow/run.py"] and found["tracking/tensorboard/events.py"]
    assert trackers_imported("def f():\n    from mlflow.entities import Metric") == {"mlflow.entities"}


def test_package_inits_hold_a_docstring_alone() -> None:
    inits = list(PACKAGE.rglob("__init__.py"))
    assert len(inits) > 10
    for path in inits:
        if path.parent.name == "bestepoch":  # where a command begins to take Ctrl-C
            continue
        body = ast.parse(path.read_text()).body
        assert [type(node) for node in body] == [ast.Expr], path
        assert isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


def test_commands_are_short_and_nothing_else_is_on_top() -> None:
    commands = {"fetch", "split", "train", "evaluate", "study", "promote", "predict", "sync", "ui"}
    assert {path.stem for path in PACKAGE.glob("*.py")} == commands | {"__init__"}
    for name in commands:
        assert len(source(name).splitlines()) <= 60


def test_what_is_not_imported_under_dvc_is_still_there_to_be_named() -> None:
    for stage, folders in NOT_UNDER_DVC.items():
        imported = {name.partition(".")[0] for module in modules(stage) for name in imports(module)}
        assert folders <= imported


def test_no_stage_is_a_sweep() -> None:
    for stage, values in PIPELINE["stages"].items():
        assert values["cmd"].startswith(f"python src/stage.py {stage}")
        assert not {"-m", "--multirun"} & set(values["cmd"].split())


class Asked(Exception):
    pass


def test_training_under_dvc_takes_the_pipelines_split_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_pipeline_split() -> Split:
        raise Asked

    monkeypatch.setattr(train, "read_pipeline_split", read_pipeline_split)
    monkeypatch.setattr(train, "job_overrides", list)
    monkeypatch.setattr(ensure, "ensure_split", lambda config: pytest.fail("fetched and split"))
    assert "publish=results/train" in PIPELINE["stages"]["train"]["cmd"].split()
    with pytest.raises(Asked):
        train.main(compose.load_config(["publish=results/train"], False)[1])


def test_evaluation_under_dvc_takes_the_pipelines_split_and_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    split = Split(tmp_path, {"checksum": "abc"})
    taken: list[Split] = []
    monkeypatch.setattr(evaluate, "read_pipeline_split", lambda: split)
    monkeypatch.setattr(evaluate, "find_run", lambda name: CHECKOUT / "results/train")
    monkeypatch.setattr(evaluate, "evaluate_run", lambda config, source, out, split: taken.append(split))
    monkeypatch.setattr(ensure, "ensure_split", lambda config: pytest.fail("fetched and split"))
    config = compose.load_config([], False)[1]
    monkeypatch.setattr(evaluate.Run, "read", lambda folder: Run(folder, {"data": {"checksum": "abc"}}))
    evaluate.main(config)
    assert taken == [split]
    monkeypatch.setattr(evaluate.Run, "read", lambda folder: Run(folder, {"data": {"checksum": "abd"}}))
    with pytest.raises(UsageError, match=r"data/split is not what results/train was trained on.*dvc repro"):
        evaluate.main(config)


def test_identity_counts_each_file_of_the_training_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "package"
    for folder in (*identity.TRAINING_FOLDERS, "evaluation", "tracking", "cli"):
        shutil.copytree(PACKAGE / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "PACKAGE", package)
    before = identity.hash_training_code()
    assert {name.partition("/")[0] for name in before} == set(identity.TRAINING_FOLDERS)
    (package / "components/models/my_network.py").write_text("x = 1\n")
    after = identity.hash_training_code()
    assert after.keys() - before.keys() == {"components/models/my_network.py"}
    (package / "evaluation/selection.py").write_text("x = 1\n")
    (package / "training/__pycache__").mkdir(exist_ok=True)
    (package / "training/__pycache__/loop.cpython-311.pyc").write_bytes(b"x")
    assert identity.hash_training_code() == after


# ---------------------------------------------------------------- what a stage reads of the settings


# Sections that a stage's code reads and does not track: why.
UNTRACKED = {
    "fetch": {},
    "split": {},
    "train": {
        "data": "written down in the run's identity; data/split/summary.json is a dependency and names it",
        "split": "likewise",
        "selection": "only for the number that main returns to a sweeper; nothing of it is published",
        "publish": "null in conf/config.yaml; the stage's command gives it",
    },
    "evaluate": {
        "run": "null in conf/config.yaml; an option for the command line",
    },
}


# Of sections that a stage reads in part, what it does not read: changed, it runs nothing again.
NOT_READ = {
    "fetch": set(),
    "split": set(),
    "train": {"tracking.histograms"},
    "evaluate": {"tracking.drain_seconds", "tracking.grad_norm", "tracking.system_metrics"},
}


def sections(module: str) -> set[str]:
    """The sections of the configuration that a module's functions read from an argument of type ``Config``."""
    found: set[str] = set()
    for function in ast.walk(ast.parse(source(module))):
        if not isinstance(function, ast.FunctionDef):
            continue
        configs = {
            argument.arg
            for argument in function.args.args
            if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Config"
        }
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute):
                continue
            held = ast.unparse(node.value) in ("self.config", "request.config")  # of a dataclass
            if held and node.attr in Config.model_fields:
                found.add(node.attr)
            elif held or (isinstance(node.value, ast.Name) and node.value.id in configs):
                if node.attr == "training":
                    found |= set(compose.load_config([], False)[1].training())
                elif node.attr in Config.model_fields:
                    found.add(node.attr)
                elif not held:
                    assert node.attr in ("model_copy", "model_dump"), f"{module}.{function.name} reads {node.attr}"
    return found


def tracked(stage: str, choice: dict[str, str]) -> dict[str, set[str] | None]:
    """The parameters of a stage: of each file the keys, or None for all of it."""
    found: dict[str, set[str] | None] = {}
    for line in PIPELINE["stages"][stage]["params"]:
        if isinstance(line, str):
            of_params = found.setdefault("params.yaml", set())
            assert of_params is not None
            of_params.add(line)
        else:
            for file, keys in line.items():
                name = re.sub(r"\$\{(\w+)\}", lambda match: choice[match[1]], file)
                assert "${" not in name
                found[name] = None if keys is None else set(keys)
    return found


def tracked_sections(stage: str) -> set[str]:
    """The sections of which a stage tracks everything, in each file where it has a part."""
    choice = {menu: PARAMS[menu] for menu in MENUS}
    there = tracked(stage, choice)
    of_params, of_config = there.get("params.yaml") or set(), there.get("conf/config.yaml") or set()
    found = set()
    for section in Config.model_fields:
        needed = []
        if section in MENUS:
            needed = [section in of_params, there.get(f"conf/{section}/{choice[section]}.yaml", set()) is None]
        else:
            leaves = {f"{section}.{key}" for key in CONFIG[section]} if isinstance(CONFIG[section], dict) else set()
            in_part = bool(leaves & NOT_READ[stage])
            needed = [section in of_config and not in_part]
            if in_part and leaves & of_config:
                assert leaves & of_config == leaves - NOT_READ[stage], f"{stage} tracks another part of {section}"
                needed = [True]
            if section in PARAMS:
                needed.append(section in of_params)
        assert len(set(needed)) == 1, f"{stage} tracks only a part of {section}"
        if all(needed):
            found.add(section)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_tracks_exactly_the_settings_that_it_reads(stage: str) -> None:
    # evaluate opens no run, see below: what decides a run's identity is not read
    skipped = {"runs.run", "runs.identity", "runs.request"} if stage == "evaluate" else set()
    read = set().union(*(sections(module) for module in modules(stage) - skipped))
    if stage == "evaluate":
        read.add("data")  # the names of the classes, from the file of the data set that was trained on
    assert read
    assert tracked_sections(stage) == read - set(UNTRACKED[stage])
    assert set(UNTRACKED[stage]) <= read  # no exception that is none


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_does_not_track_of_a_section_it_does_not_read(stage: str) -> None:
    everywhere = [
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for path in PACKAGE.rglob("*.py")
    ]
    for name in NOT_READ[stage]:
        section, key = name.split(".")
        pattern = rf"(config|settings|tracking)\.({section}\.)?{key}\b"
        readers = {module for module in everywhere if re.search(pattern, source(module))}
        assert readers, f"nothing reads {name}"
        assert not {module for module in readers & modules(stage) if not module.startswith("tracking.")}


def test_only_training_opens_a_run() -> None:
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "Run.open(" in path.read_text()}
    assert found == {"training/session.py"}
    assert not {module for module in modules("evaluate") if module.startswith("training.")}


def test_the_options_of_the_command_line_are_null_in_the_file() -> None:
    assert (CONFIG["run"], CONFIG["publish"]) == (None, None)


def test_training_publishes_nothing_of_the_selection() -> None:
    assert "selection" not in compose.load_config([], False)[1].training()


# ---------------------------------------------------------------- which files of conf/ a stage can read


def opened(monkeypatch: pytest.MonkeyPatch, overrides: list[str]) -> set[str]:
    """The files of conf/ that Hydra loads for these overrides."""
    compose.load_config([], False)  # the first time in a process, Hydra loads its plugins' modules anew
    from hydra._internal.core_plugins import file_config_source

    names: set[str] = set()

    class Recorder:
        @staticmethod
        def load(file: Any) -> Any:
            names.add(Path(file.name).relative_to(CHECKOUT).as_posix())
            return original.load(file)

        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

    original = file_config_source.OmegaConf
    with monkeypatch.context() as patch:
        patch.setattr(file_config_source, "OmegaConf", Recorder())
        compose.load_config(overrides, False)
    return names


@pytest.mark.parametrize(("menu", "entry"), CHOICES)
def test_each_file_of_conf_that_a_choice_brings_in_is_tracked(
    menu: str, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = {**{m: PARAMS[m] for m in MENUS}, menu: entry}
    files = opened(monkeypatch, [f"{menu}={entry}"])
    assert files == {"conf/config.yaml", *(f"conf/{m}/{choice[m]}.yaml" for m in MENUS)}
    readers = [stage for stage in STAGES if menu in tracked_sections(stage)]
    assert readers == (["fetch", "evaluate"] if menu == "data" else ["train"])
    for stage in readers:
        there = tracked(stage, choice)
        assert there[f"conf/{menu}/{entry}.yaml"] is None  # all of it
        assert menu in (there["params.yaml"] or set())
        unchosen = {f"conf/{menu}/{other}.yaml" for m, other in CHOICES if m == menu and other != entry}
        assert unchosen & set(there) <= {"conf/data/mnist_sample.yaml"}  # editing another choice runs nothing


def test_the_data_set_that_may_stand_in_is_tracked_as_well() -> None:
    entries = [entry for menu, entry in CHOICES if menu == "data"]
    possible = set(get_args(get_args(data_sets.IdxDataConfig.model_fields["fallback"].annotation)[0]))
    named = {yaml.safe_load((CONF / "data" / f"{entry}.yaml").read_text()).get("fallback") for entry in entries}
    assert named == {None, "mnist_sample"}
    assert possible == {"mnist_sample"}
    for entry in entries:
        assert tracked("fetch", {"data": entry})["conf/data/mnist_sample.yaml"] is None  # all of it


def test_git_holds_nothing_that_a_stage_makes() -> None:
    held = subprocess.run(
        ["git", "ls-files", "data", "results"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout
    assert {Path(name).name for name in held.split()} == {".gitignore"}

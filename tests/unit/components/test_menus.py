"""Every entry of every menu trains: on real images the loss falls, which is more than that nothing raises."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import live
from bestepoch.base.config import compose, data_sets, groups
from bestepoch.base.config.groups import CnnConfig, LenetConfig, MlpConfig
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.components.data.split import Split, load_part
from bestepoch.components.models import model_file, networks
from bestepoch.components.schedules import early_stopping
from bestepoch.training import optimizers
from learners import entries

CHECKOUT = live.CHECKOUT


@pytest.fixture(autouse=True)
def one_thread_at_the_project(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(CHECKOUT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits(sample: Split) -> tuple[Tensor, Tensor]:
    """450 images, 45 of each digit."""
    images, labels = load_part(sample.folder, "train")
    images, labels = images[4::9], labels[4::9]  # they lie sorted by digit
    assert labels.bincount().tolist() == [45] * 10
    return images, labels


@pytest.mark.parametrize("name", entries("stopping"))
def test_every_way_to_stop_is_one_that_training_can_ask(name: str) -> None:
    menu = compose.load_config([f"stopping={name}"], False)[1].stopping
    worse = [
        {"epoch": e, "val/loss": float(e), "val/accuracy": 0.5, "train/epoch_loss": 1.0, "seconds": 1.0}
        for e in range(1, 9)
    ]
    stops = [n for n in range(9) if early_stopping.early_stop_reason(worse[:n], menu)]
    first = {"none": 9, "patience": 1 + getattr(menu, "patience", 0), "plateau": 2 * getattr(menu, "window", 0)}[name]
    assert stops == list(range(first, 9))


@pytest.mark.parametrize("name", entries("data"))
def test_every_data_set_names_what_is_needed_to_fetch_and_to_check_it(name: str, sample: Split) -> None:
    menu = compose.load_config([f"data={name}"], False)[1].data
    assert menu.name == name
    if isinstance(menu, data_sets.SampleDataConfig):
        assert (sample.name, sample.shape, sample.classes) == (name, (28, 28), 10)
        assert sample.values["sizes"] == {"train": 4050, "validation": 450, "test": menu.test_images}
    else:
        assert menu.mirrors
        assert all(mirror.startswith("http") for mirror in menu.mirrors)
        assert len({*menu.files.model_dump().values()}) == 4
        checksums = menu.md5.model_dump().values()
        assert all(isinstance(md5, str) and len(md5) == 32 and int(md5, 16) for md5 in checksums)
        assert len(set(checksums)) == 4


def kinds(menu: str) -> set[str]:
    """The entries that the schema has a class for."""
    annotation = Config.model_fields[menu].annotation
    tag = "kind" if menu == "data" else "name"
    return {get_args(c.model_fields[tag].annotation)[0] for c in get_args(annotation)}


@pytest.mark.parametrize("menu", groups.CONFIG_GROUPS)
def test_every_class_of_the_schema_has_a_file_and_every_file_a_class(menu: str) -> None:
    names = {getattr(compose.load_option(menu, name), "kind" if menu == "data" else "name") for name in entries(menu)}
    assert names == kinds(menu)
    if menu != "data":
        assert names == set(entries(menu))


# ---------------------------------------------------------------- other images


@pytest.mark.parametrize("classes", [1, 2, 10, 256])
@pytest.mark.parametrize("shape", [(17, 20), (20, 17), (19, 22), (22, 19), (28, 28), (33, 47), (64, 64)])
@pytest.mark.parametrize("name", entries("model"))
def test_every_network_takes_other_images_and_any_number_of_classes(
    name: str, shape: tuple[int, int], classes: int
) -> None:
    torch.manual_seed(0)
    menu = compose.load_option("model", name)
    if name == "cnn" and min(shape) < 23:  # what its error says to do there
        with pytest.raises(UsageError, match=r"or model\.padding=2"):
            networks.build_network(menu, shape, classes, 33.0, 78.0)
        menu = menu.model_copy(update={"padding": 2})
    network = networks.build_network(menu, shape, classes, 33.0, 78.0)
    images = torch.randint(0, 256, (6, *shape), dtype=torch.uint8)
    labels = torch.arange(6) % classes
    logits = network(images)
    assert logits.shape == (6, classes)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    cross_entropy(logits, labels).backward()
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    # each image by itself gives the same as in a batch
    network.eval()
    one_by_one = torch.cat([network(images[i : i + 1]) for i in range(6)])
    assert torch.allclose(network(images), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 5), (11, 11)])
def test_tiny_images_are_no_trouble_for_mlp_and_cnn(shape: tuple[int, int]) -> None:
    for menu in (
        MlpConfig(name="mlp", hidden=[4], activation="relu", dropout=0.0),
        CnnConfig(
            name="cnn",
            channels=[4] * 6,
            kernel_sizes=[3],
            strides=[1],
            pool_sizes=[2],
            padding=1,
            activation="relu",
            dropout=0.0,
            tta_shift=0,
        ),
    ):
        logits = networks.build_network(menu, shape, 3, 0.0, 1.0)(torch.ones(2, *shape, dtype=torch.uint8))
        assert logits.shape == (2, 3)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("shape", [(11, 28), (28, 11), (8, 8), (1, 1)])
def test_lenet_says_that_images_are_too_small(shape: tuple[int, int]) -> None:
    menu = LenetConfig(name="lenet", activation="tanh", dropout=0.0)
    with pytest.raises(UsageError) as caught:
        networks.build_network(menu, shape, 10, 0.0, 1.0)
    assert str(caught.value) == (
        f"model = lenet needs images of at least 12 x 12 pixels, these are {shape[0]} x {shape[1]}"
    )
    assert networks.build_network(menu, (12, 12), 10, 0.0, 1.0)(torch.zeros(1, 12, 12)).shape == (1, 10)


def test_cnn_says_that_nothing_is_left_of_the_images() -> None:
    with pytest.raises(UsageError) as caught:
        networks.build_network(compose.load_option("model", "cnn"), (9, 28), 10, 0.0, 1.0)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "model = cnn leaves nothing of images of 9 x 28 pixels after 3 of its blocks: "
        "give it fewer model.channels, smaller model.kernel_sizes, or model.padding=2"
    )


def test_the_normalisation_is_part_of_the_network() -> None:
    torch.manual_seed(0)
    for name in entries("model"):
        network = networks.build_network(compose.load_option("model", name), (28, 28), 10, 33.5, 78.25).eval()
        images = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8)
        by_hand = network.body(((images.double() - 33.5) / 78.25).float().unsqueeze(1))
        assert torch.allclose(network(images), by_hand, rtol=1e-4, atol=1e-5)
        assert torch.equal(network(images), network(images.float()))
        assert {"mean", "std"} <= set(network.state_dict())


def test_evaluation_gives_the_mean_over_an_image_and_its_moved_copies() -> None:
    torch.manual_seed(0)
    settings = compose.load_config(["model=cnn", "model.tta_shift=2"], False)[1]
    network = networks.build_network(settings.model, (28, 28), 10, 33.5, 78.25)
    images = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8)
    down_right, up_left = torch.zeros_like(images), torch.zeros_like(images)
    down_right[:, 2:, 2:] = images[:, :-2, :-2]
    up_left[:, :-2, :-2] = images[:, 2:, 2:]
    viewed = networks.evaluation_network(settings.model, network).eval()
    by_hand = sum(network(view) for view in (images, down_right, up_left)) / 3
    assert torch.allclose(viewed(images), by_hand, rtol=1e-4, atol=1e-5)
    assert torch.equal(viewed(images.float()), viewed(images))
    assert not torch.allclose(network(images), by_hand, rtol=1e-2, atol=1e-2)
    # a tracker exports it, for any number of images
    exported = torch.export.export(
        viewed, (images.float(),), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=1000)},)
    )
    assert torch.allclose(exported.module()(images[:3].float()), by_hand[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", entries("model"))
def test_without_views_evaluation_takes_the_network_itself(name: str) -> None:
    menu = compose.load_config([f"model={name}"], False)[1].model
    network = networks.build_network(menu, (28, 28), 10, 33.5, 78.25)
    assert networks.evaluation_network(menu, network) is network


def test_a_model_file_holds_the_plain_network_and_is_restored_with_its_views() -> None:
    menu = compose.load_config(["model=cnn", "model.tta_shift=1"], False)[1].model
    network = networks.build_network(menu, (28, 28), 10, 33.5, 78.25).eval()
    held = {"network": network.state_dict(), "model": menu.model_dump(), "shape": [28, 28], "classes": 10}
    viewed = model_file.restore_network({**held, "pixel_mean": 33.5, "pixel_std": 78.25, "run": "any"})
    assert isinstance(viewed, networks.ShiftedViews) and viewed.shift == 1 and not viewed.network.training
    images = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8)
    assert torch.equal(viewed(images), networks.evaluation_network(menu, network)(images))
    assert not torch.equal(viewed(images), network(images))


def test_a_model_file_with_the_old_names_of_settings_is_read(caplog: pytest.LogCaptureFixture) -> None:
    groups.new_key.cache_clear()
    menu = compose.load_config(["model=cnn", "model.padding=1", "model.pool_sizes=[1,2,1]"], False)[1].model
    network = networks.build_network(menu, (28, 28), 10, 33.5, 78.25).eval()
    values = menu.model_dump()
    values |= {"kernels": values.pop("kernel_sizes"), "pools": values.pop("pool_sizes")}
    held = {"network": network.state_dict(), "model": values, "shape": [28, 28], "classes": 10}
    again = model_file.restore_network({**held, "pixel_mean": 33.5, "pixel_std": 78.25, "run": "any"})
    images = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8)
    assert torch.equal(again(images), network(images))
    told = [record.getMessage().partition(";")[0] for record in caplog.records]
    assert sorted(told) == [
        "warning: model.kernels is now model.kernel_sizes",
        "warning: model.pools is now model.pool_sizes",
    ]


def test_an_image_is_not_moved_out_of_sight() -> None:
    settings = compose.load_config(["model=cnn", "model.padding=2", "model.tta_shift=9"], False)[1]
    with pytest.raises(UsageError) as caught:
        networks.build_network(settings.model, (9, 28), 10, 0.0, 1.0)
    assert str(caught.value) == (
        "model.tta_shift = 9 moves images of 9 x 28 pixels out of sight: at most 8, or 0 for none"
    )


# with zeros around: of 28 pixels 13 are left, 13 (7 of them where pooled), 3, 3 and 3
@pytest.mark.parametrize(
    ("channels", "side"), [([3], 13), ([3, 5], 7), ([3, 5, 7], 3), ([3, 5, 7, 9], 3), ([3, 5, 7, 9, 11], 3)]
)
def test_the_last_kernel_and_stride_are_those_of_all_further_blocks(channels: list[int], side: int) -> None:
    given = [
        "model=cnn",
        f"model.channels=[{','.join(map(str, channels))}]",
        "model.padding=1",
        "model.pool_sizes=[1,2,1]",
    ]
    menu = compose.load_config(given, False)[1].model
    assert isinstance(menu, CnnConfig) and (menu.kernel_sizes, menu.strides) == ([5, 3, 4, 3], [2, 1, 2, 1])
    layers = list(networks.build_network(menu, (28, 28), 10, 33.0, 78.0).modules())
    convolutions = [m for m in layers if isinstance(m, torch.nn.Conv2d)]
    assert [m.kernel_size[0] for m in convolutions] == [5, 3, 4, 3, 3][: len(channels)]
    assert [m.stride[0] for m in convolutions] == [2, 1, 2, 1, 1][: len(channels)]
    assert [m.kernel_size for m in layers if isinstance(m, torch.nn.MaxPool2d)] == [2][: len(channels) - 1]
    (linear,) = (m for m in layers if isinstance(m, torch.nn.Linear))
    assert linear.in_features == channels[-1] * side**2


@pytest.mark.parametrize(
    ("overrides", "linear", "convolutions"),
    [
        (["model=mlp", "model.hidden=[7,5,3]"], [(784, 7), (7, 5), (5, 3), (3, 10)], []),
        (["model=cnn", "model.channels=[3,5]"], [(5 * 10 * 10, 10)], [(1, 3), (3, 5)]),
        (["model=cnn", "model.channels=[4]"], [(4 * 12 * 12, 10)], [(1, 4)]),
        (["model=lenet"], [(400, 120), (120, 84), (84, 10)], [(1, 6), (6, 16)]),
    ],
)
def test_the_layers_are_those_that_the_settings_name(
    overrides: list[str], linear: list[tuple[int, int]], convolutions: list[tuple[int, int]]
) -> None:
    network = networks.build_network(compose.load_config(overrides, False)[1].model, (28, 28), 10, 33.0, 78.0)
    layers = list(network.modules())
    assert [(m.in_features, m.out_features) for m in layers if isinstance(m, torch.nn.Linear)] == linear
    assert [(m.in_channels, m.out_channels) for m in layers if isinstance(m, torch.nn.Conv2d)] == convolutions


@pytest.mark.parametrize("name", entries("model"))
def test_dropout_and_activation_are_those_that_the_settings_name(name: str) -> None:
    settings = compose.load_config([f"model={name}", "model.dropout=0.25", "model.activation=gelu"], False)[1]
    layers = list(networks.build_network(settings.model, (28, 28), 10, 33.0, 78.0).modules())
    dropouts = [m.p for m in layers if isinstance(m, torch.nn.Dropout)]
    assert dropouts
    assert set(dropouts) == {0.25}
    assert any(isinstance(m, torch.nn.GELU) for m in layers)
    assert not any(isinstance(m, torch.nn.ReLU | torch.nn.Tanh | torch.nn.Sigmoid) for m in layers)


@pytest.mark.parametrize(
    ("name", "cls", "expected"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.75, "nesterov": True, "weight_decay": 0.25}),
        ("adam", torch.optim.Adam, {"betas": (0.5, 0.75), "weight_decay": 0.25}),
        ("adamw", torch.optim.AdamW, {"betas": (0.5, 0.75), "weight_decay": 0.25}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.5, "momentum": 0.75, "weight_decay": 0.25}),
    ],
)
def test_the_optimizer_has_the_settings_values(name: str, cls: type, expected: dict[str, Any]) -> None:
    values = {"lr": 0.125, **expected}
    given = [f"optimizer.{key}={list(v) if isinstance(v, tuple) else str(v).lower()}" for key, v in values.items()]
    menu = compose.load_config([f"optimizer={name}", *(line.replace(" ", "") for line in given)], False)[1].optimizer
    made = optimizers.build_optimizer(
        menu, networks.build_network(compose.load_option("model", "mlp"), (28, 28), 10, 33.0, 78.0)
    )
    assert isinstance(made, cls)
    assert type(made).__name__ == cls.__name__
    assert {key: made.param_groups[0][key] for key in values} == values
    assert entries("optimizer") == ["adam", "adamw", "rmsprop", "sgd"]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_the_optimizer_does_what_pytorchs_own_does(name: str) -> None:
    """To the bit, through a state that is saved and taken up, with hooks called, and without tracking gradients."""
    own = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
    menu = compose.load_option("optimizer", name)
    network = networks.build_network(compose.load_option("model", "mlp"), (28, 28), 10, 33.0, 78.0)
    twin = copy.deepcopy(network)
    made = optimizers.build_optimizer(menu, network)
    theirs: list[dict[str, Any]] = [
        {**group, "params": [p for p in twin.parameters() if (p.ndim > 1) == (i == 0)]}
        for i, group in enumerate(made.param_groups)
    ]
    expected = own[name](theirs, lr=menu.lr)
    hooked: list[Any] = []
    made.register_step_post_hook(lambda *_: hooked.append(None))
    images = torch.randint(256, (20, 28, 28), generator=torch.Generator().manual_seed(0)).float()
    for _ in range(2):
        for one, by in ((network, made), (twin, expected)):
            for _ in range(3):
                by.zero_grad(set_to_none=True)
                one(images).square().mean().backward()
                by.step()
            by.load_state_dict(copy.deepcopy(by.state_dict()))
        for p, q in zip(network.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q)
            assert p.requires_grad and p.grad_fn is None
    assert len(hooked) == 6


# ---------------------------------------------------------------- as it is typed

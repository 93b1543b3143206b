"""Guards against the silent flaws of published examples. Where it can be done, the flaw is put in and is found."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

import live
from bestepoch.base.config import compose
from bestepoch.base.config.groups import AffineConfig, SgdConfig, ShiftConfig
from bestepoch.components.data.augment import Augment
from bestepoch.components.data.order import epoch_permutation as split_order
from bestepoch.components.data.split import Split, load_part
from bestepoch.components.models import inference, networks, scoring
from bestepoch.runs.journal import to_floats
from bestepoch.training import loop, optimizers
from bestepoch.training.distributed import DistributedContext
from bestepoch.training.loop import EpochData, Learner, NonFiniteLoss
from bestepoch.training.loss import Objective
from updates import CPU, MODELS, NO_AUGMENT, AfterUpdate, digits, fresh, teach

CHECKOUT = live.CHECKOUT
PACKAGE = CHECKOUT / "src/bestepoch"


@pytest.fixture(autouse=True)
def as_torch_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, at the project, without a word; what training sets for the whole process is set back."""
    monkeypatch.chdir(CHECKOUT)
    logger = logging.getLogger("bestepoch")
    level, threads, deterministic = logger.level, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    yield
    logger.setLevel(level)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


# ---------------------------------------------------------------- the order of the data


def check_order(order: Callable[[int, int, int], Tensor]) -> None:
    """Each image once an epoch, another order each time, and nothing but (seed, epoch) decides."""
    epochs = [order(3, epoch, 500) for epoch in range(1, 7)]
    for visited in epochs:
        assert visited.sort().values.tolist() == list(range(500)), "not each image once"
        assert not torch.equal(visited, torch.arange(500)), "not shuffled"
    for one, other in itertools.combinations(epochs, 2):
        assert (one == other).double().mean() < 0.05, "the order repeats"
    for epoch, visited in enumerate(epochs, 1):
        assert (visited == order(4, epoch, 500)).double().mean() < 0.05, "the seed has no part in it"
    torch.manual_seed(99)
    torch.rand(7)
    state = torch.get_rng_state()
    for epoch in (4, 1, 6):  # in any order, whatever was drawn before
        assert torch.equal(order(3, epoch, 500), epochs[epoch - 1]), "something else decides as well"
    assert torch.equal(torch.get_rng_state(), state), "it draws from the generator of everything else"


def test_the_order_changes_between_epochs_and_is_a_function_of_seed_and_epoch() -> None:
    check_order(split_order)


@pytest.mark.parametrize(
    ("flaw", "found"),
    [
        (lambda seed, epoch, n: torch.arange(n), "not shuffled"),
        (lambda seed, epoch, n: split_order(seed, 1, n), "the order repeats"),
        (lambda seed, epoch, n: split_order(0, epoch, n), "the seed has no part in it"),
        (lambda seed, epoch, n: torch.randint(0, n, (n,)), "not each image once"),
        (lambda seed, epoch, n: torch.cat([split_order(seed, epoch, n - 1)] * 2)[:n], "not each image once"),
        (lambda seed, epoch, n: torch.randperm(n), "the seed has no part|something else decides"),
        (lambda seed, epoch, n: torch.rand(1) < 2 and split_order(seed, epoch, n), "the generator of everything else"),
    ],
)
def test_a_flawed_order_would_be_found(flaw: Callable[[int, int, int], Tensor], found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        check_order(flaw)


# ---------------------------------------------------------------- a real training, watched


def test_losses_that_stayed_on_a_device_are_looked_at_when_the_epoch_ends() -> None:
    losses = to_floats([1.0, torch.tensor(2.0)])
    assert loop.require_finite(losses, 540, lambda _iteration: 0.1) == [1.0, 2.0]
    losses = to_floats([1.0, torch.tensor(2.0), torch.tensor(float("nan"))])
    with pytest.raises(loop.NonFiniteLoss, match=r"nan at iteration 543 \(learning rate 0\.1\)"):
        loop.require_finite(losses, 540, lambda _iteration: 0.1)


# ---------------------------------------------------------------- outputs are logits


def check_logits(network: nn.Module, images: Tensor) -> None:
    """Free numbers of either sign: not yet made into probabilities, along no axis, and not cut off at zero."""
    with torch.no_grad():
        logits = network.eval()(images).double()
    assert (logits < 0).any(), "never negative"
    assert (logits > 0).any(), "never positive"
    for axis in (0, 1):
        assert (logits.sum(axis) - 1).abs().max() > 0.01, "sums to 1"
        assert (logits.exp().sum(axis) - 1).abs().max() > 0.01, "logarithms of probabilities"
    with torch.no_grad():
        alone = torch.cat([network(images[i : i + 1]) for i in range(5)]).double()
    assert (alone - logits[:5]).abs().max() < 1e-4, "an image's output depends on the others in its batch"


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_logits(name: str, sample: Split) -> None:
    images, labels = digits(sample, "train", 200)
    network = fresh(name, sample)
    check_logits(network, images)
    teach(network, images, labels, 2, 50)
    check_logits(network, images)


@pytest.mark.parametrize(
    ("flaw", "found"),
    [
        (nn.ReLU(), "never negative"),
        (nn.Sigmoid(), "never negative"),
        (nn.Softmax(1), "never negative"),
        (nn.Softmax(0), "never negative"),
        (nn.LogSoftmax(1), "never positive"),
        (nn.LogSoftmax(0), "never positive"),
        (nn.LogSigmoid(), "never positive"),
        (nn.BatchNorm1d(10, track_running_stats=False), "depends on the others|sums to 1|Expected more than 1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_that_are_no_logits_would_be_found(name: str, flaw: nn.Module, found: str, sample: Split) -> None:
    images, _ = digits(sample, "train", 200)
    with pytest.raises((AssertionError, ValueError), match=found):
        check_logits(nn.Sequential(fresh(name, sample), flaw), images)


# ---------------------------------------------------------------- the first loss


def check_first_loss(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    network.train()
    loss = Objective(0.0, 0.0, ())(network(images), labels).item()
    assert abs(loss - math.log(10)) < 0.5, f"a fresh network guesses, and its loss is {loss:.2f}"


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_network_guesses(name: str, seed: int, sample: Split) -> None:
    check_first_loss(fresh(name, sample, seed), *digits(sample, "train", 100))


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_beginning_would_be_found(name: str, sample: Split) -> None:
    images, labels = digits(sample, "train", 100)
    network = fresh(name, sample)
    with torch.no_grad():
        list(network.parameters())[-2].mul_(200)  # the last layer's weights, drawn too large
    with pytest.raises(AssertionError, match="guesses"):
        check_first_loss(network, images, labels)
    over_the_batch = nn.Sequential(fresh(name, sample), nn.LogSoftmax(0))
    raw = over_the_batch(images)
    assert abs(-raw[torch.arange(100), labels].mean().item() - math.log(10)) > 0.5  # as nll_loss would have it


def test_pixels_that_are_not_normalised_would_be_found(sample: Split) -> None:
    images, labels = digits(sample, "train", 100)
    network = fresh("mlp", sample)
    network.mean.zero_()
    network.std.fill_(1.0)
    with pytest.raises(AssertionError, match="guesses"):
        check_first_loss(network, images, labels)


# ---------------------------------------------------------------- it can learn, and only what is there


def check_disjoint(parts: dict[str, Tensor]) -> None:
    hashes = {name: {hashlib.sha256(i.numpy().tobytes()).digest() for i in images} for name, images in parts.items()}
    for one, other in itertools.combinations(hashes, 2):
        assert not hashes[one] & hashes[other], f"{one} and {other} share images"


def test_the_three_parts_share_no_image(sample: Split) -> None:
    parts = {part: load_part(sample.folder, part)[0] for part in ("train", "validation", "test")}
    assert {part: len(images) for part, images in parts.items()} == {"train": 4050, "validation": 450, "test": 500}
    check_disjoint(parts)
    for part, other in itertools.permutations(parts, 2):
        mixed = {**parts, part: torch.cat([parts[part], parts[other][-1:]])}
        with pytest.raises(AssertionError, match="share images"):
            check_disjoint(mixed)


# ---------------------------------------------------------------- weight decay, L1, label smoothing


SGD = SgdConfig(name="sgd", lr=0.5, weight_decay=0.25, l1=0.0, momentum=0.0, nesterov=False)


def check_decay(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step without a gradient shrinks the matrices by lr × decay, and nothing else."""
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kinds = set()
    for name, p in network.named_parameters():
        kinds.add(p.ndim > 1)
        expected = before[name] * (1 - 0.5 * 0.25) if p.ndim > 1 else before[name]
        assert torch.allclose(p, expected, rtol=1e-6, atol=0), f"{name} decays wrongly"
    assert kinds == {True, False}


@pytest.mark.parametrize("name", MODELS)
def test_weight_decay_acts_on_matrices_only(name: str, sample: Split) -> None:
    network = fresh(name, sample)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.01)  # a bias of zero would shrink unseen
    optimizer = optimizers.build_optimizer(SGD, network)
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in network.parameters())
    check_decay(network, optimizer)
    with pytest.raises(AssertionError, match="decays wrongly"):
        check_decay(network, torch.optim.SGD(network.parameters(), lr=0.5, weight_decay=0.25))
    with pytest.raises(AssertionError, match="decays wrongly"):
        check_decay(network, torch.optim.SGD(network.parameters(), lr=0.5))


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd"])
def test_every_optimizer_keeps_decay_from_vectors(name: str, sample: Split) -> None:
    network = fresh("cnn", sample)
    menu = compose.load_config([f"optimizer={name}", "optimizer.weight_decay=0.125"], False)[1].optimizer
    decays = {
        id(p): group["weight_decay"]
        for group in optimizers.build_optimizer(menu, network).param_groups
        for p in group["params"]
    }
    assert {n: decays[id(p)] for n, p in network.named_parameters()} == {
        n: 0.125 if p.ndim > 1 else 0.0 for n, p in network.named_parameters()
    }


def test_l1_adds_exactly_its_share_of_the_absolute_weights() -> None:
    torch.manual_seed(0)
    first, second = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2, 4))
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    plain = Objective(0.0, 0.0, (first, second))(logits, labels)
    assert plain.item() == cross_entropy(logits, labels).item()
    penalised = Objective(0.0, 0.25, (first, second))(logits, labels)
    expected = 0.25 * (first.abs().sum() + second.abs().sum()).item()
    assert penalised.item() - plain.item() == pytest.approx(expected, rel=1e-6)
    penalised.backward()
    assert first.grad is not None and torch.allclose(first.grad, 0.25 * first.sign())
    assert second.grad is not None and torch.allclose(second.grad, 0.25 * second.sign())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_torchs(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 10), torch.arange(8)
    got = Objective(smoothing, 0.0, ())(logits, labels).item()
    assert got == cross_entropy(logits, labels, label_smoothing=smoothing).item()
    wanted = torch.full((8, 10), smoothing / 10).scatter_(1, labels[:, None], 1 - smoothing + smoothing / 10)
    assert got == pytest.approx(-(wanted * log_softmax(logits, 1)).sum(1).mean().item(), rel=1e-6)


def test_the_score_is_the_plain_mean_over_all_images() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(1050, 10), torch.randint(0, 10, (1050,))
    fared = scoring.score_examples(logits, labels)
    logs = log_softmax(logits.double(), 1).tolist()
    by_hand = [-row[label] for row, label in zip(logs, labels.tolist(), strict=True)]
    assert fared.losses.tolist() == pytest.approx(by_hand, rel=1e-12)
    assert fared.loss == pytest.approx(math.fsum(by_hand) / 1050, rel=1e-12)
    hits = sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True))
    assert fared.accuracy == pytest.approx(hits / 1050, rel=1e-12)


def test_prediction_is_in_evaluation_mode_and_changes_nothing(sample: Split) -> None:
    images, labels = digits(sample, "validation", 130)
    menu = compose.load_option("model", "cnn").model_copy(update={"dropout": 0.5})
    torch.manual_seed(0)
    network = networks.build_network(menu, (28, 28), 10, 33.0, 78.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    whole = inference.predict(network, images)
    assert torch.equal(whole, inference.predict(network, images))
    assert torch.allclose(whole, inference.predict(network, images, batch_size=13), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training
    teach(network, images, labels, 1, 65)
    assert network.training  # an epoch is trained in training mode, also after a validation
    averages = [name for name in before if name.endswith("running_mean")]
    assert len(averages) == len(menu.channels)
    assert not any(torch.equal(network.state_dict()[name], before[name]) for name in averages)


# ---------------------------------------------------------------- augmentation


def shifted_slowly(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """``out[r, c] = image[r + down, c + right]``, zero where there is nothing."""
    height, width = image.shape
    out = np.zeros_like(image)
    for r in range(height):
        for c in range(width):
            if 0 <= r + down < height and 0 <= c + right < width:
                out[r, c] = image[r + down, c + right]
    return out


def check_shift(augment: Callable[[Tensor, Tensor], Tensor], images: Tensor, moves: Tensor, pixels: int) -> None:
    out = augment(images, torch.arange(len(images)))
    for image, move, got in zip(images.numpy(), moves.tolist(), out.numpy(), strict=True):
        assert np.array_equal(got, shifted_slowly(image, move[0] - pixels, move[1] - pixels)), "not moved as drawn"


@pytest.mark.parametrize("pixels", [1, 2, 5])
@pytest.mark.parametrize("shape", [(28, 28), (12, 20), (7, 3)])
def test_shift_moves_by_whole_pixels_exactly_as_drawn(shape: tuple[int, int], pixels: int) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, *shape), dtype=torch.uint8, generator=draw)
    augment = Augment(ShiftConfig(name="shift", pixels=pixels), 3, 2, 60, CPU)
    check_shift(augment, images, augment.params, pixels)
    with pytest.raises(AssertionError, match="not moved as drawn"):  # rows and columns exchanged
        check_shift(augment, images, augment.params.flip(1), pixels)
    with pytest.raises(AssertionError, match="not moved as drawn"):  # the other way
        check_shift(augment, images, 2 * pixels - augment.params, pixels)
    with pytest.raises(AssertionError, match="not moved as drawn"):  # in at the other side, not zeros
        check_shift(lambda i, index: torch.stack([x.roll((1, 1), (0, 1)) for x in i]), images, augment.params, pixels)


def test_shift_draws_every_move_about_as_often() -> None:
    moves = Augment(ShiftConfig(name="shift", pixels=2), 0, 1, 50_000, CPU).params
    counts = torch.bincount(5 * moves[:, 0] + moves[:, 1], minlength=25)
    assert len(counts) == 25
    assert ((counts - 2000).abs() < 250).all()  # more than five standard deviations


MENUS = [
    ShiftConfig(name="shift", pixels=3),
    AffineConfig(name="affine", degrees=20.0, scale=0.2, shear=10.0, translate=3.0),
    NO_AUGMENT,
]


@pytest.mark.parametrize("menu", MENUS, ids=lambda menu: menu.name)
def test_augmentation_belongs_to_the_image_not_to_its_place_in_a_batch(menu: Any, sample: Split) -> None:
    images, _ = digits(sample, "train", 300)
    augment = Augment(menu, 3, 2, 300, CPU)
    whole = augment(images, torch.arange(300))
    for batch_size in (1, 7, 100, 299):
        order = split_order(0, batch_size, 300)
        out = torch.zeros_like(images)
        for index in torch.split(order, batch_size):
            out[index] = augment(images[index], index)
        assert torch.equal(out, whole)
    # and a function of (seed, epoch)
    assert torch.equal(Augment(menu, 3, 2, 300, CPU)(images, torch.arange(300)), whole)
    for seed, epoch in ((3, 3), (4, 2)):
        other = Augment(menu, seed, epoch, 300, CPU)(images, torch.arange(300))
        assert torch.equal(other, whole) == (menu.name == "none")
    if menu.name != "none":  # by place it would be found
        by_place = torch.cat([augment(images[i : i + 100], torch.arange(100)) for i in (0, 100, 200)])
        assert not torch.equal(by_place, whole)


@pytest.mark.parametrize("menu", MENUS, ids=lambda menu: menu.name)
def test_an_epochs_augmentation_takes_anothers_place_in_memory(menu: Any, sample: Split) -> None:
    images, _ = digits(sample, "train", 300)
    first, second = (Augment(menu, 3, epoch, 300, CPU) for epoch in (1, 2))
    expected, place = second(images, torch.arange(300)), None if first.params is None else first.params.data_ptr()
    first.copy_params_from(second)
    assert torch.equal(first(images, torch.arange(300)), expected)
    assert place == (None if first.params is None else first.params.data_ptr())
    first.copy_params_from(Augment(menu, 3, 3, 300, CPU))
    assert torch.equal(second(images, torch.arange(300)), expected), "taken, not shared"


def test_augmentation_draws_from_a_stream_of_its_own() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = [Augment(menu, 3, 2, 300, CPU) for menu in MENUS]
    assert torch.equal(torch.get_rng_state(), state)
    assert first[0].params.float().std() > 1
    # nor does it follow the order of the data
    assert not torch.equal(split_order(3, 2, 300), first[0].params[:, 0].argsort())


@pytest.mark.parametrize("shape", [(28, 28), (12, 20), (33, 7)])
def test_affine_without_anything_to_do_is_the_identity(shape: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (20, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    nothing = Augment(AffineConfig(name="affine", degrees=0.0, scale=0.0, shear=0.0, translate=0.0), 0, 1, 20, CPU)
    assert torch.equal(nothing(images, torch.arange(20)), images)


def warped_slowly(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Each pixel from where ``matrix`` leads, measured in pixels from the centre; bilinear, zero outside."""
    height, width = image.shape
    out = np.zeros((height, width))
    for r, c in itertools.product(range(height), range(width)):
        across, down = matrix @ [c - (width - 1) / 2, r - (height - 1) / 2, 1.0]
        x, y = across + (width - 1) / 2, down + (height - 1) / 2
        for i, j in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            if 0 <= i < height and 0 <= j < width:
                out[r, c] += image[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return out


@pytest.mark.parametrize("shape", [(14, 14), (9, 15), (16, 6)])
@pytest.mark.parametrize(
    "menu",
    [
        AffineConfig(name="affine", degrees=0.0, scale=0.0, shear=0.0, translate=2.0),
        AffineConfig(name="affine", degrees=30.0, scale=0.0, shear=0.0, translate=0.0),
        AffineConfig(name="affine", degrees=0.0, scale=0.3, shear=0.0, translate=0.0),
        AffineConfig(name="affine", degrees=0.0, scale=0.0, shear=20.0, translate=0.0),
        AffineConfig(name="affine", degrees=30.0, scale=0.3, shear=20.0, translate=2.0),
    ],
    ids=lambda menu: f"{menu.degrees:g}° {menu.scale:g} {menu.shear:g}° {menu.translate:g}px",
)
def test_affine_samples_where_its_matrix_leads_also_in_images_that_are_not_square(
    menu: AffineConfig, shape: tuple[int, int]
) -> None:
    images = torch.randint(0, 256, (6, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augment = Augment(menu, 1, 1, 6, CPU)
    out = augment(images, torch.arange(6))
    for image, matrix, got in zip(images.numpy(), augment.params.double().numpy(), out.numpy(), strict=True):
        assert np.abs(got - warped_slowly(image, matrix)).max() <= 0.51  # rounded to a whole grey level
        assert np.abs(image.astype(float) - warped_slowly(image, matrix)).max() > 5  # something happened


def drawn(**values: float) -> np.ndarray:
    menu = AffineConfig(name="affine", **{"degrees": 0.0, "scale": 0.0, "shear": 0.0, "translate": 0.0, **values})
    return Augment(menu, 0, 1, 5000, CPU).params.double().numpy()


def test_affine_draws_what_its_settings_say_and_not_more() -> None:
    linear, move = drawn(degrees=20.0)[:, :, :2], drawn(degrees=20.0)[:, :, 2]
    angles = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert 19.9 < np.abs(angles).max() <= 20.0
    assert abs(angles.mean()) < 1
    assert np.allclose(linear @ linear.transpose(0, 2, 1), np.eye(2), atol=1e-6)  # turned, not stretched
    assert np.allclose(np.linalg.det(linear), 1, atol=1e-6)
    assert not move.any()

    matrices = drawn(translate=3.0)
    assert np.allclose(matrices[:, :, :2], np.eye(2))
    for axis in (0, 1):
        assert 2.99 < np.abs(matrices[:, axis, 2]).max() <= 3.0
        assert abs(matrices[:, axis, 2].mean()) < 0.15
    assert abs(np.corrcoef(matrices[:, 0, 2], matrices[:, 1, 2])[0, 1]) < 0.1

    matrices = drawn(scale=0.25)
    sizes = 1 / matrices[:, [0, 1], [0, 1]]  # how much larger the picture becomes
    assert sizes.min() == pytest.approx(0.75, abs=0.01)
    assert sizes.max() == pytest.approx(1.25, abs=0.01)
    assert not matrices[:, [0, 1], [1, 0]].any()

    matrices = drawn(shear=15.0)
    assert np.allclose(matrices[:, [0, 1], [0, 1]], 1)
    assert not matrices[:, 1, 0].any()
    assert 14.9 < np.degrees(np.arctan(np.abs(matrices[:, 0, 1]))).max() <= 15.001


# ---------------------------------------------------------------- a loss that is no number


@dataclasses.dataclass
class Breaks:
    """An objective whose ``at``-th loss is ``value``."""

    at: int
    value: float
    calls: int = 0
    context: DistributedContext = dataclasses.field(default_factory=DistributedContext)

    def __call__(self, logits: Tensor, labels: Tensor, batch: int) -> Tensor:
        self.calls += 1
        return cross_entropy(logits, labels) * (self.value if self.calls == self.at else 1.0)


def broken(sample: Split, value: float) -> tuple[NonFiniteLoss | None, list[int], dict[str, Tensor], dict[str, Tensor]]:
    """What is raised, the iterations noted, and the parameters after the last of them and at the end."""
    images, labels = digits(sample, "train", 100)
    network = fresh("mlp", sample)
    noted: list[int] = []
    weights: dict[str, Tensor] = {}

    def after(iteration: int, loss: Any, lr: float) -> None:
        noted.append(iteration)
        weights.update({name: p.detach().clone() for name, p in network.named_parameters()})

    raised = None
    try:
        objective: Any = Breaks(3, value)
        learner = Learner(network, objective, optimizers.build_optimizer(SGD, network))
        batches = torch.split(torch.arange(100), 20)
        data = EpochData(images, labels, batches, Augment(NO_AUGMENT, 0, 1, 100, CPU))
        loop.train_epoch(learner, data, lambda iteration: 0.25 / iteration, 1001, AfterUpdate(after))
    except NonFiniteLoss as error:
        raised = error
    return raised, noted, weights, dict(network.named_parameters())


def check_stopped_in_time(raised: NonFiniteLoss | None, noted: list[int], before: Any, end: Any) -> None:
    assert noted == [1001, 1002], "an update too many"
    assert all(torch.equal(before[name], p) for name, p in end.items()), "the weights are spoilt"
    assert raised is not None
    assert "at iteration 1,003 (learning rate 0.000249)" in str(raised)
    assert "learning rate 0.000249" in str(raised)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights(value: float, sample: Split) -> None:
    raised, *rest = broken(sample, value)
    check_stopped_in_time(raised, *rest)
    assert f"The loss is {value}" in str(raised)


def test_a_training_that_goes_on_regardless_would_be_found(sample: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.math, "isfinite", lambda value: True)
    result = broken(sample, math.nan)
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="an update too many"):
        check_stopped_in_time(*result)
    assert not all(torch.isfinite(p).all() for p in result[3].values())


# ---------------------------------------------------------------- the test split


def parts_loaded(source: str) -> list[str]:
    """The parts of a split that a module's code loads, "?" for one that cannot be told."""
    tree = ast.parse(source)
    names = {"load_part", "load_cached"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "bestepoch.components.data.split":
            names |= {
                alias.asname for alias in node.names if alias.name in ("load_part", "load_cached") and alias.asname
            }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names:
            given = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "part")]
            found.append(str(given[0].value) if given and isinstance(given[0], ast.Constant) else "?")
    return found


def modules(has: Callable[[str], Any]) -> dict[str, Any]:
    """What a function finds in the source of each module, where it finds anything."""
    found = {path.relative_to(PACKAGE).as_posix(): has(path.read_text()) for path in PACKAGE.rglob("*.py")}
    return {name: value for name, value in found.items() if value}


def test_only_evaluate_loads_the_test_split() -> None:
    assert modules(parts_loaded) == {
        "components/data/split.py": ["?"],  # the reader itself, which keeps what its caller asks for
        "training/trainer.py": ["train", "validation"],
        "evaluation/evaluate.py": ["test"],
        "evaluation/tensorboard_figures.py": ["train", "validation"],
    }


def test_only_the_split_and_its_reader_know_the_files() -> None:
    assert modules(lambda source: ".npz" in source).keys() == {"components/data/split.py", "splitting/split.py"}
    assert modules(lambda source: "np.load(" in source).keys() == {"components/data/split.py"}


def test_another_use_of_the_test_split_would_be_found() -> None:
    source = (PACKAGE / "training/trainer.py").read_text()
    line = '        self.validation = load_cached(split, "validation", device)\n'
    assert source.count(line) == 1
    assert parts_loaded(source.replace(line, line.replace('"validation"', '"test"'))) == ["train", "test"]
    assert parts_loaded(source.replace(line, line.replace('"validation"', "part"))) == ["train", "?"]
    other_name = "from bestepoch.components.data.split import load_part as take\ntake(folder, 'test')\n"
    assert parts_loaded(other_name) == ["test"]
    by_module = "from bestepoch.components.data import split as s\ns.load_cached(split, device=d, part='test')\n"
    assert parts_loaded(by_module) == ["test"]

"""Several workers do the work of one."""

import copy
import datetime
import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import FrozenBatchNorm2d

from igkd.base.errors import UserError
from igkd.config.optimisation import Objective
from igkd.networks.homogeneous import ScaleNorm2d
from igkd.networks.network import build
from igkd.training.batch_norm import SharedStatistics, share_batch_norms
from igkd.training.batches import epoch_batches
from igkd.training.loop import evaluate_split, make_average
from igkd.training.state import History
from tests.helpers.training import TINY, Watcher, plain_samples, random_samples, recipe, run, without_seconds


@pytest.mark.parametrize("world", [2, 3])
def test_workers_share_out_the_steps_of_one_worker(world: int) -> None:
    samples, how = plain_samples(23), recipe(batch_size=7, padding=0, epochs=2)

    def steps(rank: int, world: int) -> list[list[int]]:
        watcher = Watcher()
        run(watcher, samples, how, rank=rank, world=world, validation=plain_samples(4))
        return watcher.steps

    alone, together = steps(0, 1), [steps(rank, world) for rank in range(world)]
    assert [sorted(itertools.chain(*alone[e : e + 4])) for e in (0, 4)] == [list(range(23))] * 2
    for step, shares in zip(alone, zip(*together, strict=True), strict=True):
        assert sorted(itertools.chain(*shares)) == sorted(step)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


# Loss


@pytest.mark.parametrize("world", [2, 3, 7])
def test_workers_evaluate_every_image_once(world: int) -> None:
    model, samples = build(TINY, 2).eval(), random_samples(5)
    whole = evaluate_split(model, samples)
    # Nothing is summed where no process group is: each worker gives its own share.
    parts = [evaluate_split(model, samples, rank, world, batch_size=2) for rank in range(world)]
    assert sum(p["correct"] for p in parts) == whole["correct"]
    assert sum(p["loss"] for p in parts) == pytest.approx(whole["loss"], rel=1e-5)


# Schedule


@pytest.mark.parametrize(("count", "size", "world"), [(1, 8, 1), (2, 8, 3), (5, 2, 2), (9, 1, 2)])
def test_too_few_images_for_the_workers_are_refused(count: int, size: int, world: int) -> None:
    """The last two have images enough, but a step that leaves a worker without any, whose mean loss would not be a number."""
    for rank in range(world):
        with pytest.raises(UserError, match=r"too few|too small"):
            run(Watcher(), plain_samples(count), recipe(batch_size=size), rank=rank, world=world)


@pytest.mark.parametrize(("count", "world"), [(0, 1), (1, 2)])
def test_too_few_validation_images_are_refused(count: int, world: int) -> None:
    with pytest.raises(UserError, match=r"validation image.* too few"):
        run(Watcher(), plain_samples(9), recipe(), validation=plain_samples(count), world=world)


@pytest.mark.parametrize("batch_size", [2, 3, 4, 6, 9])
def test_the_batch_size_that_a_refusal_recommends_is_enough(batch_size: int) -> None:
    for count, world in itertools.product(range(2, 40), range(1, batch_size // 2 + 1)):
        if count >= world:
            assert all(len(batch) >= world for batch in epoch_batches(0, 1, np.arange(count), batch_size))


def work(rank: int, rendezvous: str) -> tuple[Tensor, History, list[dict[str, float]]]:
    """One of two workers: train data-parallel, and evaluate a split whose shares take different numbers of batches."""
    patience = datetime.timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=patience)
    try:
        torch.manual_seed(0)
        watcher = Watcher()
        how = recipe(batch_size=7, padding=0)
        history = run(DistributedDataParallel(watcher), plain_samples(23), how, rank=rank, world=2, validation=plain_samples(9))
        student = DistributedDataParallel(build(TINY, 0))
        evaluations = [evaluate_split(student, random_samples(9), rank, 2, batch_size=size) for size in (1, 4, 250)]
    finally:
        dist.destroy_process_group()
    return watcher.linear.weight.detach(), history, evaluations


def second_worker(rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.save(work(1, rendezvous), out)


def test_two_processes_do_the_work_of_one(tmp_path: Path) -> None:
    """Batches of 23 images in steps of 7 are uneven, and so are their halves: gradients must still be means over images."""
    rendezvous, out = str(tmp_path / "rendezvous"), tmp_path / "result"
    process = multiprocessing.get_context("spawn").Process(target=second_worker, args=(rendezvous, str(out)))
    process.start()
    try:
        first = work(0, rendezvous)
        process.join(300)
    finally:
        process.kill()
        process.join()
    torch.manual_seed(0)
    alone = Watcher()
    history = run(alone, plain_samples(23), recipe(batch_size=7, padding=0), validation=plain_samples(9))
    expected = evaluate_split(build(TINY, 0), random_samples(9))
    for weight, rows, evaluations in (first, torch.load(out, weights_only=True)):
        torch.testing.assert_close(weight, alone.linear.weight.detach(), rtol=1e-4, atol=1e-6)
        for one, two in zip(without_seconds(rows), without_seconds(history), strict=True):
            assert one == pytest.approx(two, rel=1e-4)
        assert len(evaluations) == 3 and all(e == pytest.approx(expected, rel=1e-5) for e in evaluations)


MAPPED = Objective(map_weight=1.0, map_every=3)
"""With a second derivative in every third step."""


def normalised_by(layer: nn.Module, share: slice) -> list[Tensor]:
    """Output, gradients and running statistics of a norm without shift, for a share of a batch."""
    x, gradient = torch.randn(2, 7, 4, 3, 5, generator=torch.Generator().manual_seed(0)).mul(3).add(1)
    x = x[share].requires_grad_()
    y = layer(x)
    (y * gradient[share]).sum().backward()
    assert isinstance(layer, ScaleNorm2d) and x.grad is not None and layer.weight.grad is not None and layer.running_var is not None
    return [y.detach(), x.grad, layer.weight.grad, layer.running_var]


def train_normalised(rank: int, world: int, rendezvous: str) -> tuple[History, dict[str, Tensor], list[Tensor]]:
    """A run of a network with batch normalisation as one of `world` workers, and `normalised_by` of an unequal share of a batch."""
    patience = datetime.timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=patience)
    try:
        network = share_batch_norms(build(TINY, 3))
        how = recipe(batch_size=7, epochs=3, averaging=0.9, learning_rate=0.002)
        average = make_average(network, how)
        history = run(DistributedDataParallel(network), random_samples(23), how, 0, MAPPED, rank=rank, world=world, average=average)
        assert average is not None
        scaled = normalised_by(share_batch_norms(ScaleNorm2d(4)), slice(2) if rank == 0 else slice(2, None))
        return history, average.module.state_dict(), scaled
    finally:
        dist.destroy_process_group()


def second_of_two(rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.save(train_normalised(1, 2, rendezvous), out)


def test_batch_norm_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    """The same loss curve, weights and running statistics, to rounding, as one process with torch's own batch normalisation."""
    rendezvous, out = str(tmp_path / "rendezvous"), tmp_path / "result"
    process = multiprocessing.get_context("spawn").Process(target=second_of_two, args=(rendezvous, str(out)))
    process.start()
    try:
        first = train_normalised(0, 2, rendezvous)
        process.join(300)
    finally:
        process.kill()
        process.join()
    network, how = build(TINY, 3), recipe(batch_size=7, epochs=3, averaging=0.9, learning_rate=0.002)
    average = make_average(network, how)
    history = run(network, random_samples(23), how, 0, MAPPED, average=average)
    assert average is not None
    second, alone = torch.load(out, weights_only=True), normalised_by(ScaleNorm2d(4), slice(None))
    for rows, weights, _ in (first, second):
        for one, two in zip(without_seconds(rows), without_seconds(history), strict=True):
            assert one == pytest.approx(two, rel=1e-4)
        for name, value in average.module.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=2e-3, atol=2e-4, msg=name)
    (y, slope, weight, squares), others = first[2], second[2]
    joined = [torch.cat([y, others[0]]), torch.cat([slope, others[1]]), weight + others[2], squares]
    torch.testing.assert_close([*joined, others[3]], [*alone, alone[3]], rtol=1e-5, atol=1e-5)


class Plain(nn.BatchNorm2d):
    """A subclass that computes what its parent does."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.3)


class Other(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Scratch(nn.Module):
    """A batch norm that knows nothing of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("running_mean", torch.zeros(4))


NORMS = {
    "1d": (lambda: nn.BatchNorm1d(4), lambda: nn.BatchNorm1d(4), (6, 4)),
    "1d long": (lambda: nn.BatchNorm1d(4), lambda: nn.BatchNorm1d(4), (6, 4, 5)),
    "2d": (lambda: nn.BatchNorm2d(4), lambda: nn.BatchNorm2d(4), (6, 4, 5, 3)),
    "3d": (lambda: nn.BatchNorm3d(4), lambda: nn.BatchNorm3d(4), (6, 4, 2, 3, 2)),
    "sync": (lambda: nn.SyncBatchNorm(4), lambda: nn.BatchNorm2d(4), (6, 4, 5, 3)),
    "subclass": (lambda: Plain(4), lambda: Plain(4), (6, 4, 5, 3)),
    "no weight": (lambda: nn.BatchNorm2d(4, affine=False), lambda: nn.BatchNorm2d(4, affine=False), (6, 4, 5, 3)),
    "timm's with an activation": (lambda: BatchNormAct2d(4), lambda: BatchNormAct2d(4), (6, 4, 5, 3)),
    "no momentum": (lambda: nn.BatchNorm2d(4, momentum=None), lambda: nn.BatchNorm2d(4, momentum=None), (6, 4, 5, 3)),
}


@pytest.mark.parametrize("kind", NORMS)
def test_every_batch_norm_of_torchs_is_shared(kind: str, tmp_path: Path) -> None:
    """Forward, gradients and running statistics over three steps and in evaluation, also of a copy, as an average of weights makes one."""
    make, twin, shape = NORMS[kind]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        ours, theirs = copy.deepcopy(share_batch_norms(make())), twin()
        assert isinstance(ours, SharedStatistics) and isinstance(ours, type(make())) and share_batch_norms(ours) is ours
        for step in range(3):
            seen = []
            for layer in (ours, theirs):
                x = (3 + 5 * torch.randn(shape, generator=torch.Generator().manual_seed(step))).requires_grad_()
                out = layer(x)
                (out * torch.randn(shape, generator=torch.Generator().manual_seed(9))).sum().backward()
                seen.append((out, x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()))
            for one, two in zip(*seen, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(7))
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Other(4), r"the layer 1 \(Other\) is a batch norm with a forward pass of its own"),
        (nn.BatchNorm2d(4, track_running_stats=False), "is a batch norm without running statistics"),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), r"\(InstanceNorm2d\) keeps statistics in a way of its own"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "keeps statistics in a way of its own"),
        (nn.LazyBatchNorm2d(), "keeps statistics in a way of its own"),
        (Scratch(), r"\(Scratch\) keeps statistics in a way of its own"),
    ],
)
def test_statistics_of_a_batch_that_cannot_be_shared_are_refused(layer: nn.Module, words: str) -> None:
    with pytest.raises(UserError, match=f"{words}: .* another run than with one worker; train with --workers 1"):
        share_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), layer))


def test_layers_without_statistics_of_a_batch_are_left_alone() -> None:
    layers = [FrozenBatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4), nn.Dropout(0.5), nn.LocalResponseNorm(2)]
    network = nn.Sequential(*layers)
    assert share_batch_norms(network) is network and [type(layer) for layer in network] == [type(layer) for layer in layers]


def test_shared_batch_norm_of_one_worker_is_torchs(tmp_path: Path) -> None:
    """Forward, gradients and running statistics, in one process that is a group of its own."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        ours, theirs = share_batch_norms(nn.BatchNorm2d(4)), nn.BatchNorm2d(4)
        results = []
        for layer in (ours, theirs):
            x = (3 + 5 * torch.randn(6, 4, 5, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
            weight = torch.randn(6, 4, 5, 3, generator=torch.Generator().manual_seed(1))
            (layer(x) * weight).sum().backward()
            assert isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None
            results.append((layer(x), x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var))
            layer.eval()
        for one, two in zip(*results, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    finally:
        dist.destroy_process_group()

"""A batch's loss and gradients as a CUDA graph: recorded once, replayed for every further batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bestepoch.base import errors
from bestepoch.base.errors import UsageError
from bestepoch.components.data.augment import Augment

StepFunction = Callable[[Tensor, Augment], Tensor]
WARMUP_STEPS = 3  # batches before recording: libraries choose their kernels and take their memory in the first ones


class CUDAGraphStep:
    """What `bestepoch.training.loop` does with a batch, without its Python.

    For a small network a processor needs longer to start a GPU's kernels one at a time than they run. A graph starts
    all of them at once. They are the same kernels on the same numbers, and give the same bits.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, batch_size: int, weights: Iterable[Tensor]) -> None:
        """For batches of ``batch_size`` images; others, such as the last of an epoch, are not replayed."""
        self.batch_size, self.weights = batch_size, tuple(weights)
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._warm = 0
        self._recorded: _Capture | None = None

    def __call__(self, work: StepFunction, index: Tensor, augment: Augment) -> Tensor:
        """What ``work(index, augment)`` does and returns, on a GPU.

        Args:
            work: leaves gradients in the weights, starting from none, and returns the loss; does not wait for the GPU.
                It is called for the first batches alone; what it works with must then stay where it is in memory.
            augment: an epoch's; another one is taken up when it comes.

        Raises:
            UsageError: it cannot be recorded.
        """
        if len(index) != self.batch_size:
            return work(index, augment)
        if self._recorded is None:
            if self._warm < WARMUP_STEPS:
                self._warm += 1
                return self._aside(work, index, augment)
            self._recorded = self._record(work, index, augment)
        loss = self._recorded.replay(index, augment)
        for weight, gradient in zip(self.weights, self._recorded.gradients, strict=True):
            weight.grad = gradient  # a batch that was not replayed has left others
        return loss

    def _aside(self, work: StepFunction, index: Tensor, augment: Augment) -> Tensor:
        """As it will be recorded: on a stream of its own."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = work(index, augment)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _record(self, work: StepFunction, index: Tensor, augment: Augment) -> _Capture:
        graph, index = torch.cuda.CUDAGraph(), index.clone()
        try:
            # another thread fetches losses meanwhile, which is no part of it
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                loss = work(index, augment)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # the first of them says what it was
                cause = cause.__context__
            raise UsageError(
                f"device.cuda_graphs: a batch's work cannot be recorded ({errors.first_line(cause)}). "
                "It may not wait for the GPU. Without a graph: device.cuda_graphs=false"
            ) from None
        return _Capture(graph, index, augment, augment, loss, tuple(weight.grad for weight in self.weights))


@dataclass
class _Capture:
    """A graph, and the places in memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    index: Tensor
    augment: Augment
    copied: Augment  # the one that `augment` varies as
    loss: Tensor
    gradients: tuple[Tensor | None, ...]

    def replay(self, index: Tensor, augment: Augment) -> Tensor:
        self.index.copy_(index)
        if augment is not self.copied:
            self.augment.copy_params_from(augment)
            self.copied = augment
        self.graph.replay()
        return self.loss.clone()

"""Capture the forward and backward pass of a batch as a CUDA graph and replay the graph for later batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bestepoch.base import errors
from bestepoch.base.errors import UsageError
from bestepoch.components.data.augment import Augment

StepFunction = Callable[[Tensor, Augment], Tensor]
WARMUP_STEPS = 3  # batches before capture, in which libraries select kernels and allocate workspaces


class CUDAGraphStep:
    """Run a step function through a CUDA graph, without its Python code.

    Launching the kernels of a small network one by one takes the CPU longer than the GPU needs to run them. A graph
    launches all kernels at once. The kernels and their inputs are the same, so results are bit-identical.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, batch_size: int, weights: Iterable[Tensor]) -> None:
        """Prepare to capture batches of ``batch_size`` images; batches of other sizes run without the graph."""
        self.batch_size, self.weights = batch_size, tuple(weights)
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._warmup_steps = 0
        self._captured: _Capture | None = None

    def __call__(self, step_fn: StepFunction, index: Tensor, augment: Augment) -> Tensor:
        """Return ``step_fn(index, augment)``, a tensor on the GPU, and set the gradients of the weights.

        Args:
            step_fn: Clears the gradients, computes new ones and returns what to record, without synchronising with the
                GPU. A replay does not call it, so the tensors that it uses must keep their addresses.
            index: Indices of the batch's images, shape ``(N,)``.
            augment: The epoch's augmentation. A new epoch's parameters are copied into the graph's inputs.

        Raises:
            UsageError: The step cannot be captured.
        """
        if len(index) != self.batch_size:
            return step_fn(index, augment)
        if self._captured is None:
            if self._warmup_steps < WARMUP_STEPS:
                self._warmup_steps += 1
                return self._warm_up(step_fn, index, augment)
            self._captured = self._capture(step_fn, index, augment)
        result = self._captured.replay(index, augment)
        for weight, gradient in zip(self.weights, self._captured.gradients, strict=True):
            weight.grad = gradient  # a batch that ran without the graph has replaced the graph's gradient tensors
        return result

    def _warm_up(self, step_fn: StepFunction, index: Tensor, augment: Augment) -> Tensor:
        """Run the step on the stream that the capture will use."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = step_fn(index, augment)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _capture(self, step_fn: StepFunction, index: Tensor, augment: Augment) -> _Capture:
        graph, index = torch.cuda.CUDAGraph(), index.clone()
        try:
            # thread_local: the journal's thread may copy losses from the GPU during the capture
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                result = step_fn(index, augment)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # the first error of the chain names the operation
                cause = cause.__context__
            raise UsageError(
                f"device.cuda_graphs: a batch's work cannot be recorded ({errors.first_line(cause)}). "
                "It may not wait for the GPU. Without a graph: device.cuda_graphs=false"
            ) from None
        return _Capture(graph, index, augment, augment, result, tuple(weight.grad for weight in self.weights))


@dataclass
class _Capture:
    """A captured graph and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    index: Tensor
    augment: Augment
    copied: Augment  # the Augment whose parameters `augment` holds now
    result: Tensor
    gradients: tuple[Tensor | None, ...]

    def replay(self, index: Tensor, augment: Augment) -> Tensor:
        self.index.copy_(index)
        if augment is not self.copied:
            self.augment.copy_params_from(augment)
            self.copied = augment
        self.graph.replay()
        return self.result.clone()

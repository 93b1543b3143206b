"""TensorBoard events and event files."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from bestepoch.base.paths import display_path
from bestepoch.runs.run import Run
from bestepoch.tracking.base import EPOCH_METRICS, ITERATION_METRICS

CONFIG_TAG = "run/configuration"
# Charts of the custom-scalars tab with the tags that each draws together, by category.
CUSTOM_SCALARS: dict[str, dict[str, tuple[str, ...]]] = {
    "By epoch": {
        "loss of training images and validation": ("train/eval_loss", "val/loss"),
        "accuracy of training images and validation": ("train/eval_accuracy", "val/accuracy"),
    },
    "By iteration": {
        "learning rate": ("lr",),
        "norm of the gradient": ("train/grad_norm",),
        "train/loss, the objective": ("train/loss",),
    },
}


class EventFile:
    """An event file, written synchronously with TensorBoard's ``RecordWriter``.

    ``SummaryWriter`` is not used because it writes on a background thread, which it wakes for each event. It loses the
    error of a full disk for the call that adds an event, which has returned by then, and discards the queued events.
    `write` must raise that error itself, so that the tracker delivers the same rows again.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}{suffix}"
        self.path = folder / name
        self._file = self.path.open("wb")
        self._records = RecordWriter(self._file)
        self.write([Event(wall_time=time.time(), file_version="brain.Event:2")])

    def write(self, events: list[Any]) -> None:
        """Append the events and flush the file.

        Raises:
            OSError: writing failed; the file may end in a torn record.
        """
        for event in events:
            self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_last_steps(files: list[Path]) -> dict[str, int]:
    """Return the last ``iteration`` and ``epoch`` in event files, and ``configuration``: 1 if they hold it, else 0."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    last = {"iteration": 0, "epoch": 0, "configuration": 0}
    for path in files:
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                last["configuration"] |= value.tag == CONFIG_TAG
                for axis, tags in (("iteration", ITERATION_METRICS), ("epoch", EPOCH_METRICS)):
                    if value.tag in tags:
                        last[axis] = max(last[axis], event.step)
    return last


def scalars_event(values: dict[str, float], step: int, when: float) -> Any:
    """Return one event with several scalars of one step; ``when`` is a Unix time (s)."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
    return Event(wall_time=when, step=step, summary=summary)


def hparams_event(run: Run, config: dict[str, Any]) -> Any:
    """Return an event for the hparams tab with the configuration by dotted names.

    The tab reads the results from the run's scalars. ``SummaryWriter.add_hparams`` would create a separate run.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    name = display_path(run.folder).removeprefix("runs/")  # the run's name in the other tabs
    hparams = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in config.items() if v is not None}
    return Event(wall_time=time.time(), summary=hparams_pb(hparams, trial_id=name))


def hparams_session_end(when: float) -> Any:
    """Return an event that marks the run as successful in the hparams tab; ``when`` is its end as Unix time (s)."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=when)
    summary_metadata = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=summary_metadata, tensor=metadata.NULL_TENSOR)
    return Event(wall_time=when, summary=Summary(value=[value]))


def layout_event() -> Any:
    """Return an event that lays out the custom-scalars tab: training beside validation, then the updates."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    # the tab finds the tags by regular expressions
    categories = [
        layout_pb2.Category(title=title, chart=[
            layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags]))
            for name, tags in charts.items()
        ])
        for title, charts in CUSTOM_SCALARS.items()
    ]  # fmt: skip
    layout = layout_pb2.Layout(category=categories).SerializeToString()
    # TensorBoard's own function for this needs TensorFlow
    tensor = TensorProto(dtype="DT_STRING", string_val=[layout], tensor_shape=TensorShapeProto())
    value = Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, metadata=metadata.create_summary_metadata(), tensor=tensor)
    return Event(wall_time=time.time(), summary=Summary(value=[value]))


def config_table(config: dict[str, Any]) -> str:
    """Return the configuration by dotted names as a Markdown table."""
    rows = [f"| `{key}` | {value} |" for key, value in config.items() if value is not None]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def text_event(tag: str, markdown: str) -> Any:
    """Return an event with Markdown for the text tab."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.text.summary_v2 import text_pb

    return Event(wall_time=time.time(), summary=text_pb(tag, markdown))

"""TensorBoard events and the files that hold them."""

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


class EventFile:
    """A TensorBoard event file, written many events at a time: its own writer wakes a thread for each."""

    def __init__(self, folder: Path, suffix: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}{suffix}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self.write([Event(wall_time=time.time(), file_version="brain.Event:2")])

    def write(self, events: list[Any]) -> None:
        """All of them are in the file when this returns. Raises OSError; the file then ends in a torn record."""
        for event in events:
            self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Nothing more is written to it."""
        self._file.close()


def read_last_steps(files: list[Path]) -> dict[str, int]:
    """The last iteration and the last epoch in a run's event files, and whether these have the configuration."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    last = {"iteration": 0, "epoch": 0, "configuration": 0}
    for path in files:
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                last["configuration"] |= value.tag == CONFIG_TAG
                axis = (
                    "iteration" if value.tag in ITERATION_METRICS else "epoch" if value.tag in EPOCH_METRICS else None
                )
                if axis:
                    last[axis] = max(last[axis], event.step)
    return last


def scalars_event(values: dict[str, float], step: int, when: float) -> Any:
    """Several scalars of one step as one TensorBoard event."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    value = Summary.Value
    return Event(
        wall_time=when,
        step=step,
        summary=Summary(value=[value(tag=tag, simple_value=number) for tag, number in values.items()]),
    )


def hparams_event(run: Run, config: dict[str, Any]) -> Any:
    """An event for the hparams tab, in the run's own file: a writer's `add_hparams` makes a run of its own for it.

    Of the settings, by their dotted names; the tab finds the results by itself, for they are the run's scalars.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    name = display_path(run.folder).removeprefix("runs/")  # as the other tabs call it
    plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in config.items() if v is not None}
    return Event(wall_time=time.time(), summary=hparams_pb(plain, trial_id=name))


def hparams_session_end(when: float) -> Any:
    """An event for the hparams tab."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=when)
    told = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=told, tensor=metadata.NULL_TENSOR)
    return Event(wall_time=when, summary=Summary(value=[value]))


def config_table(config: dict[str, Any]) -> str:
    """The settings by their dotted names, as a table in Markdown."""
    rows = [f"| `{key}` | {value} |" for key, value in config.items() if value is not None]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def text_event(tag: str, markdown: str) -> Any:
    """An event for the text tab."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.text.summary_v2 import text_pb

    return Event(wall_time=time.time(), summary=text_pb(tag, markdown))

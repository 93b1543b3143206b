"""The journal, delivered to TensorBoard."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bestepoch.base.files import relative
from bestepoch.runs.journal import Row
from bestepoch.runs.run import Run, flat
from bestepoch.tracking.mlflow.store import PER_EPOCH, PER_ITERATION
from bestepoch.tracking.run_summary import describe

CONFIGURATION = "run/configuration"
EVALUATION = ".evaluate"  # how the name of its event file ends


class TensorBoardTracker:
    """Event files in the run's folder, so that TensorBoard shows the run under the same name as MLflow."""

    name = "TensorBoard"

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, run.folder
        self.place: dict[str, Any] = {}
        self._file: EventFile | None = None
        self._last: dict[str, int] | None = None

    @staticmethod
    def load() -> None:
        """See `Tracker`."""
        import tensorboard.backend.event_processing.event_file_loader
        import tensorboard.summary.writer.record_writer  # noqa: F401

    def open(self) -> None:
        """Look how far the event files of earlier attempts go."""
        if self._last is not None:
            return
        if "last" in self.place and self.place.get("files") == self._sizes():
            self._last = dict(self.place["last"])
            return
        self._last = last_steps(self._files())
        if self.place.get("last") != self._last:
            self.place.clear()  # files were deleted, or hold more than was noted: all is looked at again
        if not self._last.get("configuration"):
            config = flat(self.run.info["config"])
            self._append([hyperparameters(self.run, config), text(CONFIGURATION, configuration(config))])
            self._noted(configuration=1)

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        """One event a row, in a file of this attempt's own; a row that a file holds already is left out."""
        assert self._last is not None
        events = []
        for rows, keys, axis in ((iterations, PER_ITERATION, "iteration"), (epochs, PER_EPOCH, "epoch")):
            new = [row for row in rows if row[axis] > self._last[axis]]
            events += [scalars({key: row[key] for key in keys}, int(row[axis]), row["time"]) for row in new]
        self._append(events)
        last = {"iteration": iterations, "epoch": epochs}
        self._noted(**{k: max([self._last[k], *(int(row[k]) for row in rows[-1:])]) for k, rows in last.items()})

    def _noted(self, **last: int) -> None:
        assert self._last is not None
        self._last.update(last)
        self.place.update(last=dict(self._last), files=self._sizes())

    def _append(self, events: list[Any]) -> None:
        if events and self._file is None:
            self._file = EventFile(self.folder, f".{len(self._files())}")
        try:
            if self._file is not None:
                self._file.write(events)
        except OSError:
            # what came behind a torn record would not be read: look how far it goes, and begin another file
            self._file, self._last = None, None
            raise

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("events.out.tfevents.*") if path.suffix != EVALUATION]

    def _sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in sorted(self._files())}

    def close(self, status: str) -> None:
        """What came of the run, once for each of its ends."""
        ended = self.run.info.get("ended")
        if self.place.get("ended") != ended:
            told = [text("run/summary", describe(self.run.info))]
            if status == "finished":
                told.append(finished(ended or time.time()))
            self._append(told)
            self.place.update(ended=ended, files=self._sizes())
        if self._file is not None:
            self._file.close()
            self._file = None


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


def last_steps(files: list[Path]) -> dict[str, int]:
    """The last iteration and the last epoch in a run's event files, and whether these have the configuration."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    last = {"iteration": 0, "epoch": 0, "configuration": 0}
    for path in files:
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                last["configuration"] |= value.tag == CONFIGURATION
                axis = "iteration" if value.tag in PER_ITERATION else "epoch" if value.tag in PER_EPOCH else None
                if axis:
                    last[axis] = max(last[axis], event.step)
    return last


def scalars(values: dict[str, float], step: int, when: float) -> Any:
    """Several scalars of one step as one TensorBoard event."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    value = Summary.Value
    return Event(
        wall_time=when,
        step=step,
        summary=Summary(value=[value(tag=tag, simple_value=number) for tag, number in values.items()]),
    )


def hyperparameters(run: Run, config: dict[str, Any]) -> Any:
    """An event for the hparams tab, in the run's own file: a writer's `add_hparams` makes a run of its own for it.

    Of the settings, by their dotted names; the tab finds the results by itself, for they are the run's scalars.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    name = relative(run.folder).removeprefix("runs/")  # as the other tabs call it
    plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in config.items() if v is not None}
    return Event(wall_time=time.time(), summary=hparams_pb(plain, trial_id=name))


def finished(when: float) -> Any:
    """An event for the hparams tab."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=when)
    told = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=told, tensor=metadata.NULL_TENSOR)
    return Event(wall_time=when, summary=Summary(value=[value]))


def configuration(config: dict[str, Any]) -> str:
    """The settings by their dotted names, as a table in Markdown."""
    rows = [f"| `{key}` | {value} |" for key, value in config.items() if value is not None]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def text(tag: str, markdown: str) -> Any:
    """An event for the text tab."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.text.summary_v2 import text_pb

    return Event(wall_time=time.time(), summary=text_pb(tag, markdown))


def show_evaluation(folder: Path, metrics: dict[str, float], verdict: str, more: Iterable[Any]) -> None:
    """Add an evaluation to a run's event files, in place of an earlier one.

    Args:
        verdict: Markdown.
        more: further events.
    """
    for old in folder.glob(f"events.out.tfevents.*{EVALUATION}"):
        old.unlink()
    file = EventFile(folder, EVALUATION)
    file.write([scalars(metrics, 0, time.time()), text("run/evaluation", verdict), *more])
    file.close()

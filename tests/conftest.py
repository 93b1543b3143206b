"""What several files of tests stand on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bestepoch.base.config import compose
from bestepoch.components.data.split import Split
from bestepoch.fetching.download import fetch
from bestepoch.splitting.split import split_data

# In the background of a script Ctrl-C is ignored, and whatever a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Likewise SIGHUP, where nohup has started the tests.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# What a test asks for is on this machine, and a proxy does not know it.
os.environ["no_proxy"] = "127.0.0.1,localhost"


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """The offline sample, split as the pipeline would."""
    folder = tmp_path_factory.mktemp("sample")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[1])
        settings = compose.load_config(["data=mnist_sample"], False)[1]
        fetch(settings.data, settings.fetch, folder / "raw")
        split_data(folder / "raw", folder / "split", settings.split)
    return Split.read(folder / "split")

"""A command ends when its work has."""

from __future__ import annotations

import live

# what is registered first runs last
COMMAND = """
import atexit, gc
atexit.register(lambda: print(len(gc.get_objects()), gc.get_freeze_count()))
from bestepoch.cli.launch import launch

def task(settings):
    import torch

launch(task)
"""


def test_what_the_imports_made_is_not_looked_through_once_more() -> None:
    looked_through, left_alone = map(int, live.python(COMMAND).split())
    assert looked_through < 1000 and left_alone > 100_000

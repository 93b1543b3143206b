"""Say which private API of another package has moved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import version

import pytest

CHECKED = {"hydra-core": "1.3.8", "mlflow": "3.17.2", "torch": "2.13.0"}


@contextlib.contextmanager
def as_in(package: str, function: str) -> Iterator[None]:
    """Say what has moved, in place of a traceback from inside of the package."""
    try:
        yield
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        pytest.fail(
            f"private_api.{function} was checked against {package} {CHECKED[package]} and does not work with "
            f"{version(package)}: {type(error).__name__}: {error}",
            pytrace=False,
        )

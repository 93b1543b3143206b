"""Define the error for mistakes of the user, and format the errors of libraries."""

from __future__ import annotations

import re


class UsageError(Exception):
    """A problem that the user can solve; shown without a traceback."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without credentials, or the error's type if it has no message."""
    return redact_credentials((str(error).strip().splitlines() or [type(error).__name__])[0])


def is_unique_violation(error: BaseException) -> bool:
    """Return whether a tracking store refused a row because another process has just added the same row.

    MLflow checks for a row before inserting one, so that two processes can collide. The message of SQLite and
    PostgreSQL contains "unique", that of MySQL "duplicate"; an MLflow server forwards its database's message.
    """
    text = str(error).lower()
    return "unique" in text or "duplicate" in text


def redact_credentials(text: str) -> str:
    """Remove user names and passwords from the URLs in ``text``.

    The pattern extends to the last @ of a word, because a password that is not escaped may contain further ones.
    """
    return re.sub(r"://[^/\s]\S*@", "://", text)

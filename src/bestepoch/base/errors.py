"""The error that is meant for people, and what libraries' errors say."""

from __future__ import annotations

import re


class UsageError(Exception):
    """Something the person at the keyboard can put right; shown without a traceback."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, without the page that some add to it, and without a password in an address."""
    return redact_credentials((str(error).strip().splitlines() or [type(error).__name__])[0])


def is_unique_violation(error: BaseException) -> bool:
    """Whether a store refuses a row only because another process has added it just before.

    MLflow looks whether it has one, then adds it. SQLite and PostgreSQL say unique, MySQL duplicate; a server says
    what its database did.
    """
    text = str(error).lower()
    return "unique" in text or "duplicate" in text


def redact_credentials(text: str) -> str:
    """Addresses without the name and the password of a user, for what is shown or written down.

    To the last @ of the word: in a password that should have been escaped there may be others.
    """
    return re.sub(r"://[^/\s]\S*@", "://", text)

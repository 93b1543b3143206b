"""Turn validation errors into messages that name the setting, its value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from bestepoch.base.config.compose import _greater_than
from bestepoch.base.config.groups import CONFIG_GROUPS


def _tag_key(group: str) -> str:
    """The key whose value says which kind of entry a menu's file is."""
    return "kind" if group == "data" else "name"


def format_validation_error(error: dict[str, Any], values: Any) -> str:
    """One validation error as the setting, its value and what is allowed."""
    loc = [str(part) for part in error["loc"]]
    if loc[0] in (*CONFIG_GROUPS, "sweep") and len(loc) > 1:
        loc.pop(1)  # pydantic names the kind of entry there, which is no part of the key
    # a union reports each alternative's type as a last, technical part of the location
    while len(loc) > 1 and ("[" in loc[-1] or loc[-1] in ("int", "float", "str")):
        loc.pop()
    key = ".".join(loc)
    where = f"conf/{loc[0]}/" if loc[0] in CONFIG_GROUPS else "conf/config.yaml or params.yaml"
    context = error.get("ctx", {})
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        parent: Any = values
        for part in loc[:-1]:
            parent = parent[part]
        return unknown_key_message(key, [".".join([*loc[:-1], str(k)]) for k in parent if str(k) != loc[-1]])
    if kind == "together":
        return str(error["msg"])
    if kind == "missing":
        return f"{key} is missing (in {where})"
    if kind == "union_tag_invalid":
        return (
            f"{key}.{_tag_key(loc[0])} = {context['tag']!r} is not known; allowed: {context['expected_tags']}. "
            "Its class belongs into bestepoch/schema.py."
        )
    if kind == "union_tag_not_found":
        return f"{key}.{_tag_key(loc[0])} is missing (in {where})"
    meanings: dict[str, Callable[[], str]] = {
        "greater_than": lambda: _greater_than(context["gt"]),
        "greater_than_equal": lambda: f"must be at least {context['ge']:.12g}",
        "less_than": lambda: f"must be less than {context['lt']:.12g}",
        "less_than_equal": lambda: f"must be at most {context['le']:.12g}",
        "literal_error": lambda: "must be " + re.sub("True|False", lambda word: word[0].lower(), context["expected"]),
        "int_type": lambda: "must be a whole number",
        "int_from_float": lambda: "must be a whole number",
        "float_type": lambda: "must be a number",
        "bool_type": lambda: "must be true or false",
        "string_type": lambda: "must be a text",
        "list_type": lambda: "must be a list, such as [1,2]",
        "too_short": lambda: f"must have at least {context['min_length']} entries",
        "too_long": lambda: f"must have at most {context['max_length']} entries",
        "string_too_short": lambda: "must not be empty",
        "model_type": lambda: "must be a group of settings, each `key: value`",
        "model_attributes_type": lambda: "must be a group of settings, each `key: value`",
        "finite_number": lambda: "must be a finite number",
        "value_error": lambda: str(context["error"]),
    }
    allowed = meanings.get(kind, lambda: str(error["msg"]))()
    return f"{key} = {_format_value(value)} is not allowed: {allowed}"


def _format_value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value!r}"


def unknown_key_message(key: str, known: list[str]) -> str:
    """The message for a key that is none, with the nearest ones that are."""
    parent = key.rpartition(".")[0]
    beside = [k for k in known if k.startswith(f"{parent}.")] if parent else []
    there = beside or sorted({k.partition(".")[0] for k in known})
    return f"{key} is not a setting. {suggest(key, known, there)}".rstrip()


def suggest(word: str, known: list[str], there: Sequence[str] = ()) -> str:
    """Say "Did you mean ...?" where something is near, else what there is."""
    import difflib

    if not known:
        return ""
    tail = {k.rsplit(".", 1)[-1]: k for k in known}
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6) or [
        tail[t] for t in difflib.get_close_matches(word.rsplit(".", 1)[-1], list(tail), n=3, cutoff=0.6)
    ]
    return f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(sorted(there or known))}."

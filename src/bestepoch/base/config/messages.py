"""Turn validation errors into messages that name the setting, its value and the allowed values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from bestepoch.base.config.groups import CONFIG_GROUPS


def _tag_key(group: str) -> str:
    """Return the key that selects the class of an option: pydantic's discriminator."""
    return "kind" if group == "data" else "name"


def format_validation_error(error: dict[str, Any], values: Any) -> str:
    """Format one pydantic error as a line for the user.

    Args:
        error: An entry of `pydantic.ValidationError.errors`.
        values: The configuration that was validated, as nested dicts.
    """
    loc = [str(part) for part in error["loc"]]
    if loc[0] in (*CONFIG_GROUPS, "sweep") and len(loc) > 1:
        loc.pop(1)  # the tag of the union member, which is not part of the key
    # Pydantic appends the type of each union member to the location.
    while len(loc) > 1 and ("[" in loc[-1] or loc[-1] in ("int", "float", "str")):
        loc.pop()
    key = ".".join(loc)
    where = f"conf/{loc[0]}/" if loc[0] in CONFIG_GROUPS else "conf/config.yaml or params.yaml"
    context = error.get("ctx", {})
    error_type = error["type"]
    if error_type == "extra_forbidden":
        parent: Any = values
        for part in loc[:-1]:
            parent = parent[part]
        return unknown_key_message(key, [".".join([*loc[:-1], str(k)]) for k in parent if str(k) != loc[-1]])
    if error_type == "together":
        return str(error["msg"])
    if error_type == "missing":
        return f"{key} is missing (in {where})"
    if error_type == "union_tag_invalid":
        return (
            f"{key}.{_tag_key(loc[0])} = {context['tag']!r} is not known; allowed: {context['expected_tags']}. "
            "Its class belongs into src/bestepoch/base/config/groups.py."
        )
    if error_type == "union_tag_not_found":
        return f"{key}.{_tag_key(loc[0])} is missing (in {where})"
    rules: dict[str, Callable[[], str]] = {
        "greater_than": lambda: _format_lower_bound(context["gt"]),
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
    allowed = rules.get(error_type, lambda: str(error["msg"]))()
    return f"{key} = {_format_value(error['input'])} is not allowed: {allowed}"


def _format_value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value!r}"


def _format_lower_bound(limit: int | float) -> str:
    # PositiveInt is "greater than 0" to pydantic; "at least 1" is plainer.
    return f"must be at least {limit + 1}" if isinstance(limit, int) else f"must be greater than {limit:.12g}"


def unknown_key_message(key: str, valid_keys: list[str]) -> str:
    """Return the message for an unknown dotted key, with the closest valid keys."""
    parent = key.rpartition(".")[0]
    siblings = [k for k in valid_keys if k.startswith(f"{parent}.")] if parent else []
    alternatives = siblings or sorted({k.partition(".")[0] for k in valid_keys})
    return f"{key} is not a setting. {suggest(key, valid_keys, alternatives)}".rstrip()


def suggest(word: str, candidates: list[str], alternatives: Sequence[str] = ()) -> str:
    """Return "Did you mean ...?" with the candidates close to `word`, or a list of alternatives if none is close.

    Args:
        word: The unknown word.
        candidates: The valid words; those that contain dots also match by their last part.
        alternatives: The words to list when no candidate is close; all candidates by default.
    """
    import difflib

    if not candidates:
        return ""
    by_last_part = {c.rsplit(".", 1)[-1]: c for c in candidates}
    matches = difflib.get_close_matches(word, candidates, n=3, cutoff=0.6) or [
        by_last_part[m] for m in difflib.get_close_matches(word.rsplit(".", 1)[-1], list(by_last_part), n=3, cutoff=0.6)
    ]
    if matches:
        return f"Did you mean {' or '.join(matches)}?"
    return f"There are: {', '.join(sorted(alternatives or candidates))}."

"""From ``params.yaml``, ``conf/`` and the command line to checked settings, or to a message that helps.

Hydra composes, `bestepoch.schema` says what may stand there. Neither torch nor a tracker is imported on the way, so
that a bad override is answered at once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError  # type: ignore[import-untyped]

from bestepoch.base import files
from bestepoch.base.config.schema import RENAMED, Settings, renamed
from bestepoch.base.files import UsageError

MENUS = ("data", "model", "optimizer", "scheduler", "augment", "stopping")


@functools.lru_cache(maxsize=8)
def _read_params(path: Path, _changed: int) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise UsageError(f"{files.relative(path)} is not readable: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{files.relative(path)} must hold `key: value` lines")
    return {str(k): v for k, v in values.items()}


def params() -> dict[str, Any]:
    """``params.yaml`` of the project, read anew only when it changed."""
    path = files.root() / "params.yaml"
    if not path.is_file():
        raise UsageError(f"{files.relative(path)} is not there. Restore it with: git checkout params.yaml")
    return _read_params(path, path.stat().st_mtime_ns)


def _param(key: str) -> Any:
    value: Any = params()
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UsageError(f"params.yaml has no {key}, which conf/config.yaml reads from it. Add it there.")
        value = value[part]
    return value


def value(key: str) -> Any:
    """One value of ``conf/config.yaml`` as it stands there, for tools that compose nothing."""
    return OmegaConf.select(OmegaConf.load(files.root() / "conf/config.yaml"), key)


# `${params:key}`. At the import, which is all that comes before composing in the processes that a launcher starts.
OmegaConf.register_new_resolver("params", _param, replace=True)


def _all_params_are_read() -> None:
    """A key of ``params.yaml`` that nothing in ``conf/`` reads would be a setting without effect."""
    conf = files.root() / "conf"
    read = {key for path in conf.rglob("*.yaml") for key in re.findall(r"\$\{params:([\w.]+)\}", path.read_text())}
    for key in _flat(params()):
        if key not in read:
            raise UsageError(f"params.yaml: {unknown_key(key, sorted(read))}")


def choices(menu: str) -> list[str]:
    """The names that ``menu`` offers: the files in ``conf/<menu>/``."""
    return sorted(path.stem for path in (files.root() / "conf" / menu).glob("*.yaml"))


def settings(cfg: DictConfig) -> Settings:
    """Check a composed configuration.

    Raises:
        UsageError: with one line for each setting that is wrong.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        text = str(error).splitlines()[0].removeprefix("UsageError raised while resolving interpolation: ")
        raise UsageError(f"{error.full_key}: {text}") from None
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join(explain(dict(e), values) for e in error.errors())) from None


def menu_entry(menu: str, name: str) -> Any:
    """One file of ``conf/`` by itself, checked: what ``data.fallback`` names.

    Raises:
        UsageError: no such file, or a setting in it is wrong.
    """
    if name not in choices(menu):
        raise UsageError(f"{menu} = {name} is not in conf/{menu}/. {nearest(name, choices(menu))}")
    values = {menu: OmegaConf.to_container(OmegaConf.load(files.root() / "conf" / menu / f"{name}.yaml"))}
    field = Settings.model_fields[menu]
    entry: Any = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
    try:
        return entry.validate_python(values[menu])
    except ValidationError as error:
        found = (explain({**e, "loc": (menu, *e["loc"])}, values) for e in error.errors())
        raise UsageError("\n".join(found)) from None


def _tag(menu: str) -> str:
    """The key whose value says which kind of entry a menu's file is."""
    return "kind" if menu == "data" else "name"


def explain(error: dict[str, Any], values: Any) -> str:
    """One validation error as the setting, its value and what is allowed."""
    loc = [str(part) for part in error["loc"]]
    if loc[0] in (*MENUS, "sweep") and len(loc) > 1:
        loc.pop(1)  # pydantic names the kind of entry there, which is no part of the key
    # a union reports each alternative's type as a last, technical part of the location
    while len(loc) > 1 and ("[" in loc[-1] or loc[-1] in ("int", "float", "str")):
        loc.pop()
    key = ".".join(loc)
    where = f"conf/{loc[0]}/" if loc[0] in MENUS else "conf/config.yaml or params.yaml"
    context = error.get("ctx", {})
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        parent: Any = values
        for part in loc[:-1]:
            parent = parent[part]
        return unknown_key(key, [".".join([*loc[:-1], str(k)]) for k in parent if str(k) != loc[-1]])
    if kind == "together":
        return str(error["msg"])
    if kind == "missing":
        return f"{key} is missing (in {where})"
    if kind == "union_tag_invalid":
        return (
            f"{key}.{_tag(loc[0])} = {context['tag']!r} is not known; allowed: {context['expected_tags']}. "
            "Its class belongs into bestepoch/schema.py."
        )
    if kind == "union_tag_not_found":
        return f"{key}.{_tag(loc[0])} is missing (in {where})"
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
    return f"{key} = {_shown(value)} is not allowed: {allowed}"


def _greater_than(limit: int | float) -> str:
    """The limit of a whole number is an int: pydantic's PositiveInt is "greater than 0", which is "at least 1"."""
    return f"must be at least {limit + 1}" if isinstance(limit, int) else f"must be greater than {limit:.12g}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value!r}"


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a key that is none, with the nearest ones that are."""
    parent = key.rpartition(".")[0]
    beside = [k for k in known if k.startswith(f"{parent}.")] if parent else []
    there = beside or sorted({k.partition(".")[0] for k in known})
    return f"{key} is not a setting. {nearest(key, known, there)}".rstrip()


def nearest(word: str, known: list[str], there: Sequence[str] = ()) -> str:
    """Say "Did you mean ...?" where something is near, else what there is."""
    import difflib

    if not known:
        return ""
    tail = {k.rsplit(".", 1)[-1]: k for k in known}
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6) or [
        tail[t] for t in difflib.get_close_matches(word.rsplit(".", 1)[-1], list(tail), n=3, cutoff=0.6)
    ]
    return f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(sorted(there or known))}."


def checked(overrides: list[str], multirun: bool) -> tuple[list[str], Settings]:
    """`composed`, with the settings of the first job in place of its configuration."""
    given, cfg = composed(overrides, multirun)
    return given, settings(cfg)


def composed(overrides: list[str], multirun: bool) -> tuple[list[str], DictConfig]:
    """The overrides of a command line, found good before any work starts.

    Every value of a sweep is checked, each with the first value of the other sweeps. ``train.iterations=...`` on the
    command line stands in for the epochs of ``params.yaml``, so ``train.epochs=null`` is added to it. A setting's old
    name is replaced by its new one.

    Returns:
        the overrides, each in its place, with that addition, and the first job's configuration, unresolved.

    Raises:
        UsageError: an unknown setting or choice, or a value that is not allowed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException

    _all_params_are_read()
    old = re.compile(rf"^(\+*model\.)({'|'.join(RENAMED)})(?==)")
    overrides = [old.sub(lambda found: found[1] + renamed(found[2]), line) for line in overrides]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise UsageError(f"{error.override!r} is not an override. Write key=value, such as train.epochs=3.") from None
    keys = {o.key_or_group for o in parsed if not o.is_delete()}
    extra = ["train.epochs=null"] if "train.iterations" in keys and "train.epochs" not in keys else []
    theirs = [o for o in parsed if o.key_or_group.split("/")[0].split(".")[0] == "hydra"]
    ours = [o for o in parsed if o not in theirs]
    values = {str(o.input_line): [str(o.input_line)] for o in ours}
    for o in ours:
        line = str(o.input_line)
        if o.is_sweep_override():
            if not multirun:
                raise UsageError(f"{line} names several values: add -m to train each of them.")
            name = line.split("=", 1)[0]
            try:
                values[line] = [f"{name}={text}" for text in _sweep_texts(o, name.lstrip("+"))]
            except (HydraException, ValueError) as error:
                raise UsageError(f"{line} is no list of values to try: {error}") from None
    first = [texts[0] for texts in values.values()]
    cfg = _compose(first + extra, [str(o.input_line) for o in theirs if not o.is_sweep_override()])
    for i, texts in enumerate(values.values()):
        for text in texts[1:]:
            _compose([*first[:i], text, *first[i + 1 :], *extra], [])
    return overrides + extra, cfg


def _sweep_texts(override: Any, key: str) -> list[str]:
    from hydra.core.override_parser.types import Glob, Transformer

    if isinstance(override.value(), Glob):
        return override.value().filter(choices(key)) or [""]
    return [str(text) for text in override.sweep_iterator(transformer=Transformer.encode)]


def _compose(overrides: list[str], of_hydra: list[str]) -> DictConfig:
    """Compose and check one job's configuration, with the project's messages in place of Hydra's."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    menus = {folder.name for folder in (files.root() / "conf").iterdir() if folder.is_dir()} - {"hydra"}
    chosen = {menu: str(_param(menu)) for menu in MENUS}
    origin = dict.fromkeys(chosen, "params.yaml: ")
    group_lines = []
    for line in overrides:
        name, _, value = line.partition("=")
        if name.lstrip("+") in menus and not name.startswith("~"):
            chosen[name.lstrip("+")] = value.strip("'\"")
            origin[name.lstrip("+")] = ""
            group_lines.append(line)
    for menu, name in chosen.items():
        if not name.startswith("${") and name not in choices(menu):
            raise UsageError(f"{origin[menu]}{menu} = {name} is not in conf/{menu}/. {nearest(name, choices(menu))}")
    try:
        with initialize_config_dir(str(files.root() / "conf"), version_base="1.3"):
            try:
                cfg = compose("config", [*overrides, *of_hydra])
                settings(cfg)
                return cfg
            except (HydraException, OmegaConfBaseException, UsageError) as error:
                # composing takes its time: what keys there are is looked up only where one may be unknown, which
                # Hydra says, but for those that a + adds
                if isinstance(error, UsageError) and not any(line.startswith("+") for line in overrides):
                    raise
                keys = _flat(OmegaConf.to_container(compose("config", group_lines)))
                for line in overrides:
                    key = line.split("=", 1)[0].lstrip("+~")
                    if line not in group_lines and not any(k == key or k.startswith(f"{key}.") for k in keys):
                        raise UsageError(unknown_key(key, [*sorted(menus), *keys])) from None
                raise
    except YAMLError as error:
        raise UsageError(f"A file in conf/ is not readable: {error}") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UsageError(str(error).partition("\nConfig search path:")[0].strip()) from None
    finally:
        GlobalHydra.instance().clear()


def _flat(values: Any, prefix: str = "") -> list[str]:
    if not isinstance(values, dict):
        return [prefix]
    return [key for k, v in values.items() for key in _flat(v, f"{prefix}.{k}" if prefix else str(k))]

"""From ``params.yaml``, ``conf/`` and the command line to checked settings, or to a message that helps.

Hydra composes, `bestepoch.schema` says what may stand there. Neither torch nor a tracker is imported on the way, so
that a bad override is answered at once.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError  # type: ignore[import-untyped]

from bestepoch.base import paths
from bestepoch.base.config.groups import CONFIG_GROUPS, RENAMED_KEYS, new_key
from bestepoch.base.config.messages import format_validation_error, suggest, unknown_key_message
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError


@functools.lru_cache(maxsize=8)
def _read_params(path: Path, _changed: int) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise UsageError(f"{paths.display_path(path)} is not readable: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{paths.display_path(path)} must hold `key: value` lines")
    return {str(k): v for k, v in values.items()}


def read_params() -> dict[str, Any]:
    """``params.yaml`` of the project, read anew only when it changed."""
    path = paths.project_root() / "params.yaml"
    if not path.is_file():
        raise UsageError(f"{paths.display_path(path)} is not there. Restore it with: git checkout params.yaml")
    return _read_params(path, path.stat().st_mtime_ns)


def _read_param(key: str) -> Any:
    value: Any = read_params()
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UsageError(f"params.yaml has no {key}, which conf/config.yaml reads from it. Add it there.")
        value = value[part]
    return value


def read_default(key: str) -> Any:
    """One value of ``conf/config.yaml`` as it stands there, for tools that compose nothing."""
    return OmegaConf.select(OmegaConf.load(paths.project_root() / "conf/config.yaml"), key)


# `${params:key}`. At the import, which is all that comes before composing in the processes that a launcher starts.
OmegaConf.register_new_resolver("params", _read_param, replace=True)


def _require_params_read() -> None:
    """A key of ``params.yaml`` that nothing in ``conf/`` reads would be a setting without effect."""
    conf = paths.project_root() / "conf"
    read = {key for path in conf.rglob("*.yaml") for key in re.findall(r"\$\{params:([\w.]+)\}", path.read_text())}
    for key in _flatten_keys(read_params()):
        if key not in read:
            raise UsageError(f"params.yaml: {unknown_key_message(key, sorted(read))}")


def list_options(group: str) -> list[str]:
    """The names that ``menu`` offers: the files in ``conf/<menu>/``."""
    return sorted(path.stem for path in (paths.project_root() / "conf" / group).glob("*.yaml"))


def validate(cfg: DictConfig) -> Config:
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
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join(format_validation_error(dict(e), values) for e in error.errors())) from None


def load_option(group: str, name: str) -> Any:
    """One file of ``conf/`` by itself, checked: what ``data.fallback`` names.

    Raises:
        UsageError: no such file, or a setting in it is wrong.
    """
    if name not in list_options(group):
        raise UsageError(f"{group} = {name} is not in conf/{group}/. {suggest(name, list_options(group))}")
    values = {group: OmegaConf.to_container(OmegaConf.load(paths.project_root() / "conf" / group / f"{name}.yaml"))}
    field = Config.model_fields[group]
    entry: Any = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
    try:
        return entry.validate_python(values[group])
    except ValidationError as error:
        found = (format_validation_error({**e, "loc": (group, *e["loc"])}, values) for e in error.errors())
        raise UsageError("\n".join(found)) from None


def _greater_than(limit: int | float) -> str:
    """The limit of a whole number is an int: pydantic's PositiveInt is "greater than 0", which is "at least 1"."""
    return f"must be at least {limit + 1}" if isinstance(limit, int) else f"must be greater than {limit:.12g}"


def load_config(overrides: list[str], multirun: bool) -> tuple[list[str], Config]:
    """`composed`, with the settings of the first job in place of its configuration."""
    given, cfg = compose_job(overrides, multirun)
    return given, validate(cfg)


def compose_job(overrides: list[str], multirun: bool) -> tuple[list[str], DictConfig]:
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

    _require_params_read()
    old = re.compile(rf"^(\+*model\.)({'|'.join(RENAMED_KEYS)})(?==)")
    overrides = [old.sub(lambda found: found[1] + new_key(found[2]), line) for line in overrides]
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
        return override.value().filter(list_options(key)) or [""]
    return [str(text) for text in override.sweep_iterator(transformer=Transformer.encode)]


def _compose(overrides: list[str], of_hydra: list[str]) -> DictConfig:
    """Compose and check one job's configuration, with the project's messages in place of Hydra's."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    groups_ = {folder.name for folder in (paths.project_root() / "conf").iterdir() if folder.is_dir()} - {"hydra"}
    chosen = {group: str(_read_param(group)) for group in CONFIG_GROUPS}
    origin = dict.fromkeys(chosen, "params.yaml: ")
    group_lines = []
    for line in overrides:
        name, _, value = line.partition("=")
        if name.lstrip("+") in groups_ and not name.startswith("~"):
            chosen[name.lstrip("+")] = value.strip("'\"")
            origin[name.lstrip("+")] = ""
            group_lines.append(line)
    for group, name in chosen.items():
        if not name.startswith("${") and name not in list_options(group):
            raise UsageError(
                f"{origin[group]}{group} = {name} is not in conf/{group}/. {suggest(name, list_options(group))}"
            )
    try:
        with initialize_config_dir(str(paths.project_root() / "conf"), version_base="1.3"):
            try:
                cfg = compose("config", [*overrides, *of_hydra])
                validate(cfg)
                return cfg
            except (HydraException, OmegaConfBaseException, UsageError) as error:
                # composing takes its time: what keys there are is looked up only where one may be unknown, which
                # Hydra says, but for those that a + adds
                if isinstance(error, UsageError) and not any(line.startswith("+") for line in overrides):
                    raise
                keys = _flatten_keys(OmegaConf.to_container(compose("config", group_lines)))
                for line in overrides:
                    key = line.split("=", 1)[0].lstrip("+~")
                    if line not in group_lines and not any(k == key or k.startswith(f"{key}.") for k in keys):
                        raise UsageError(unknown_key_message(key, [*sorted(groups_), *keys])) from None
                raise
    except YAMLError as error:
        raise UsageError(f"A file in conf/ is not readable: {error}") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UsageError(str(error).partition("\nConfig search path:")[0].strip()) from None
    finally:
        GlobalHydra.instance().clear()


def _flatten_keys(values: Any, prefix: str = "") -> list[str]:
    if not isinstance(values, dict):
        return [prefix]
    return [key for k, v in values.items() for key in _flatten_keys(v, f"{prefix}.{k}" if prefix else str(k))]

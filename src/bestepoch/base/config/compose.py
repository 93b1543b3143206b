"""Compose ``params.yaml``, ``conf/`` and the command line into a validated `Config`.

Hydra composes and `schema` validates. Neither torch nor a tracker is imported, so a bad override fails at once.
"""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError  # type: ignore[import-untyped]

from bestepoch.base import paths
from bestepoch.base.config.groups import CONFIG_GROUPS, RENAMED_KEYS, new_key
from bestepoch.base.config.local import read_local_keys
from bestepoch.base.config.messages import format_validation_error, suggest, unknown_key_message
from bestepoch.base.config.schema import Config
from bestepoch.base.config.yaml_files import load_yaml, read_top_level_value, read_yaml_text
from bestepoch.base.errors import UsageError

MAX_SWEEP_VALUES = 1_000  # of one setting; each is composed before the first job begins


@functools.lru_cache(maxsize=8)
def _read_params(path: Path, _changed: int) -> dict[str, Any]:
    values = load_yaml(path)
    if not isinstance(values, dict):
        raise UsageError(f"{paths.display_path(path)} must hold `key: value` lines")
    return {str(k): v for k, v in values.items()}


def read_params() -> dict[str, Any]:
    """Return the contents of ``params.yaml``, cached until the file changes.

    Raises:
        UsageError: The file is missing or is not a YAML mapping.
    """
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
    """Return one value of ``conf/config.yaml`` without composing, or None if the key is missing."""
    return OmegaConf.select(OmegaConf.create(load_yaml(paths.project_root() / "conf/config.yaml")), key)


# Register `${params:key}` at import: a launcher's worker processes call nothing else here before Hydra composes.
OmegaConf.register_new_resolver("params", _read_param, replace=True)


def _reject_unused_params() -> None:
    """Raise `UsageError` for a key of ``params.yaml`` that no file in ``conf/`` reads: it would have no effect.

    Each file in ``conf/`` is checked for its size on the way, before Hydra loads it.
    """
    conf = paths.project_root() / "conf"
    texts = [read_yaml_text(path) for path in sorted(conf.rglob("*.yaml"))]
    used = {key for text in texts for key in re.findall(r"\$\{params:([\w.]+)\}", text)}
    for key in _flatten_keys(read_params()):
        if key not in used:
            raise UsageError(f"params.yaml: {unknown_key_message(key, sorted(used))}")


def _reject_shared_name(name: str) -> None:
    """Raise `UsageError` if two files in ``conf/data/`` have the same ``name``, by which data sets are told apart."""
    folder = paths.project_root() / "conf/data"
    sharing = [path for path in sorted(folder.glob("*.yaml")) if read_top_level_value(path, "name") == name]
    if len(sharing) > 1:
        copy = next((path for path in sharing if path.stem != name), sharing[1])
        raise UsageError(
            f"{' and '.join(paths.display_path(path) for path in sharing)} both have `name: {name}`, so one would "
            f"train on the images of the other. In {paths.display_path(copy)} write: name: {copy.stem}"
        )


def list_options(group: str) -> list[str]:
    """Return the options of a config group: the names of the files in ``conf/<group>/``."""
    return sorted(path.stem for path in (paths.project_root() / "conf" / group).glob("*.yaml"))


def validate(cfg: DictConfig) -> Config:
    """Validate a composed configuration.

    Raises:
        UsageError: A setting is invalid; the message has one line per invalid setting.
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
    """Load and validate ``conf/<group>/<name>.yaml``, such as the data set that ``data.fallback`` names.

    Raises:
        UsageError: The file does not exist, or a setting in it is invalid.
    """
    if name not in list_options(group):
        raise UsageError(f"{group} = {name} is not in conf/{group}/. {suggest(name, list_options(group))}")
    values = {group: load_yaml(paths.project_root() / "conf" / group / f"{name}.yaml")}
    field = Config.model_fields[group]
    adapter: Any = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
    try:
        return adapter.validate_python(values[group])
    except ValidationError as error:
        lines = (format_validation_error({**e, "loc": (group, *e["loc"])}, values) for e in error.errors())
        raise UsageError("\n".join(lines)) from None


def load_config(overrides: list[str], multirun: bool) -> tuple[list[str], Config]:
    """Return the overrides of `compose_job` and the validated configuration of the first job."""
    overrides, cfg = compose_job(overrides, multirun)
    return overrides, validate(cfg)


def compose_job(overrides: list[str], multirun: bool) -> tuple[list[str], DictConfig]:
    """Validate the overrides of a command line and compose the first job.

    Every value of a sweep is validated together with the first value of each other sweep. Old names of settings are
    replaced. An override of ``train.iterations`` replaces the epochs of ``params.yaml``, so ``train.epochs=null`` is
    appended.

    Returns:
        The overrides in their order, with these changes, and the unresolved configuration of the first job.

    Raises:
        UsageError: A setting or option is unknown, or a value is not allowed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException

    _reject_unused_params()
    read_local_keys()
    old_key = re.compile(rf"^(\+*model\.)({'|'.join(RENAMED_KEYS)})(?==)")
    overrides = [old_key.sub(lambda match: match[1] + new_key(match[2]), line) for line in overrides]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise UsageError(f"{error.override!r} is not an override. Write key=value, such as train.epochs=3.") from None
    keys = {o.key_or_group for o in parsed if not o.is_delete()}
    extra = ["train.epochs=null"] if "train.iterations" in keys and "train.epochs" not in keys else []
    hydra_overrides = [o for o in parsed if o.key_or_group.split("/")[0].split(".")[0] == "hydra"]
    choices: dict[str, list[str]] = {}
    for o in parsed:
        if o in hydra_overrides:
            continue
        line = str(o.input_line)
        choices[line] = [line]
        if o.is_sweep_override():
            if not multirun:
                raise UsageError(f"{line} names several values: add -m to train each of them.")
            name = line.split("=", 1)[0]
            try:
                choices[line] = [f"{name}={text}" for text in _list_sweep_values(o, name.lstrip("+"))]
            except (HydraException, ValueError) as error:
                raise UsageError(f"{line} is no list of values to try: {error}") from None
    first = [lines[0] for lines in choices.values()]
    cfg = _compose(first + extra, [str(o.input_line) for o in hydra_overrides if not o.is_sweep_override()])
    for i, lines in enumerate(choices.values()):
        for line in lines[1:]:
            _compose([*first[:i], line, *first[i + 1 :], *extra], [])
    return overrides + extra, cfg


def _list_sweep_values(override: Any, key: str) -> list[str]:
    from hydra.core.override_parser.types import Glob, Transformer

    if isinstance(override.value(), Glob):
        return override.value().filter(list_options(key)) or [""]
    values = [*itertools.islice(override.sweep_iterator(transformer=Transformer.encode), MAX_SWEEP_VALUES + 1)]
    if len(values) > MAX_SWEEP_VALUES:
        raise UsageError(
            f"{override.input_line} names more than {MAX_SWEEP_VALUES:,} values. Each is a training: name fewer"
        )
    return [str(value) for value in values]


def _compose(overrides: list[str], hydra_overrides: list[str]) -> DictConfig:
    """Compose and validate the configuration of one job, replacing Hydra's error messages."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    group_names = {folder.name for folder in (paths.project_root() / "conf").iterdir() if folder.is_dir()} - {"hydra"}
    options = {group: str(_read_param(group)) for group in CONFIG_GROUPS}
    origin = dict.fromkeys(options, "params.yaml: ")
    group_lines = []
    for line in overrides:
        name, _, value = line.partition("=")
        if name.lstrip("+") in group_names and not name.startswith("~"):
            options[name.lstrip("+")] = value.strip("'\"")
            origin[name.lstrip("+")] = ""
            group_lines.append(line)
    for group, name in options.items():
        if not name.startswith("${") and name not in list_options(group):
            raise UsageError(
                f"{origin[group]}{group} = {name} is not in conf/{group}/. {suggest(name, list_options(group))}"
            )
    try:
        with initialize_config_dir(str(paths.project_root() / "conf"), version_base="1.3"):
            try:
                cfg = compose("config", [*overrides, *hydra_overrides])
                _reject_shared_name(validate(cfg).data.name)
                return cfg
            except (HydraException, OmegaConfBaseException, UsageError) as error:
                # Composing is slow, so look for unknown keys only where one is possible: Hydra reports unknown keys
                # itself, except those added with a +.
                if isinstance(error, UsageError) and not any(line.startswith("+") for line in overrides):
                    raise
                keys = _flatten_keys(OmegaConf.to_container(compose("config", group_lines)))
                for line in overrides:
                    key = line.split("=", 1)[0].lstrip("+~")
                    if line not in group_lines and not any(k == key or k.startswith(f"{key}.") for k in keys):
                        raise UsageError(unknown_key_message(key, [*sorted(group_names), *keys])) from None
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

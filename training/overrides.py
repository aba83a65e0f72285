"""`--set key=value`: single settings of a recipe, changed from a command line. Knows nothing about what they mean."""

import dataclasses
import json

from adcvsr_core.errors import ConfigError

from .config import TrainConfig


def override(config: TrainConfig, assignments: list[str]) -> TrainConfig:
    """Apply `key=value` settings.

    Keys are field names (`ema_decay`), or go through `data.`, `teacher.`, `lora.` and `stage.` (all stages) or
    `stage0.` (one), and `loss.` or `adversary.` behind these: `stage0.loss.perceptual=0.1`. Values are JSON; text
    without quotes is taken as text. `stage1.adversary=null` takes a stage's discriminators away.

    Raises:
        ConfigError: an unknown key or a value of another type.
    """
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment!r} is not key=value")
        config = _set(config, key.split("."), text, key)
    return config


def _set(target: object, path: list[str], text: str, key: str) -> object:
    name, rest = path[0], path[1:]
    if isinstance(target, TrainConfig) and name.startswith("stage") and name != "stages":
        return _set_stages(target, name, rest, text, key)
    fields = {f.name: getattr(target, f.name) for f in dataclasses.fields(target)}
    if name not in fields:
        raise ConfigError(f"--set {key}: {type(target).__name__} has no {name!r}; it has {', '.join(fields)}")
    old = fields[name]
    if rest and not dataclasses.is_dataclass(old):
        raise ConfigError(f"--set {key}: {name} is {old!r} and has no fields")
    if rest:
        return dataclasses.replace(target, **{name: _set(old, rest, text, key)})
    if name == "adversary" and text == "null":
        return dataclasses.replace(target, adversary=None)
    if old is None or dataclasses.is_dataclass(old):
        raise ConfigError(f"--set {key}: this is no single value; name a field of it, or choose another recipe")
    return dataclasses.replace(target, **{name: _parse(old, text, key)})


def _set_stages(config: TrainConfig, name: str, rest: list[str], text: str, key: str) -> TrainConfig:
    if not rest:
        raise ConfigError(f"--set {key}: name a field of the stage, such as {key}.steps")
    chosen = range(len(config.stages)) if name == "stage" else [_stage_index(name, config, key)]
    if rest[0] == "adversary" and name == "stage":  # all that have one
        chosen = [i for i in chosen if config.stages[i].adversary is not None]
    stages = tuple(_set(s, rest, text, key) if i in chosen else s for i, s in enumerate(config.stages))
    return dataclasses.replace(config, stages=stages)


def _stage_index(name: str, config: TrainConfig, key: str) -> int:
    number = name.removeprefix("stage")
    if not number.isdigit() or int(number) >= len(config.stages):
        raise ConfigError(f"--set {key}: the stages are stage0 to stage{len(config.stages) - 1}, or stage for all")
    return int(number)


def _parse(old: object, text: str, key: str) -> object:
    """Read a value of the same type as the old one."""
    if isinstance(old, str):
        return text.removeprefix('"').removesuffix('"')
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, tuple) and isinstance(value, list):
        value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    if type(old) is not type(value):
        raise ConfigError(f"--set {key}: expected a {type(old).__name__}, got {value!r}")
    return value

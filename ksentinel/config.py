# SPDX-License-Identifier: Apache-2.0
"""
Configuration: one YAML file, one frozen dataclass a room; a misspelt key is an error.

Every key has a default; ``docs/configuration.md`` lists them.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ksentinel.errors import ConfigError, Location


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """The BPF collector."""

    idle_seconds: float = 2.0
    """A thread that slept this long on a part-filled window has it flushed."""
    ring_megabytes: int = 16
    """Size of the ring buffer; a power of two."""


@dataclass(frozen=True, slots=True)
class IncidentConfig:
    """Bringing rules and model together."""

    agree_seconds: float = 30.0
    """How far apart a match and an anomaly may be and still agree."""
    quiet_seconds: float = 300.0
    """A branch of processes that was quiet this long has its incident closed."""
    fold_seconds: float = 3600.0
    """For how long an alert keeps counting incidents that look like it."""


@dataclass(frozen=True, slots=True)
class RulesConfig:
    """The rule engine."""

    paths: tuple[str, ...] = ()
    """Rule files and directories; empty: the rules that ship with ksentinel."""


@dataclass(frozen=True, slots=True)
class PrivacyConfig:
    """What is kept of what was seen."""

    redact: bool = True
    """Mask passwords and tokens in arguments before anything is stored."""


@dataclass(frozen=True, slots=True)
class Config:
    """All rooms' parts."""

    collector: CollectorConfig = field(default_factory=CollectorConfig)
    incident: IncidentConfig = field(default_factory=IncidentConfig)
    rules: RulesConfig = field(default_factory=RulesConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    @classmethod
    def from_dict(cls, plain: Any, at: Path | None = None) -> "Config":
        """
        Build from a parsed file.

        Raises
        ------
        ConfigError
            For an unknown section or key, or a value of the wrong type.

        Examples
        --------
        >>> Config.from_dict({"incident": {"agree_second": 6}})
        Traceback (most recent call last):
            ...
        ksentinel.errors.ConfigError: [incident] has no agree_second (it has agree_seconds, quiet_seconds, fold_seconds)
        """
        if not isinstance(plain, dict):
            raise ConfigError("is no mapping of sections", at=at)
        parts = {}
        types: dict[str, Any] = {f.name: f.type for f in fields(cls)}
        for section, values in plain.items():
            if section not in types:
                raise ConfigError(f"has no section {section}", at=at, remedy=f"it has {', '.join(types)}")
            known = [f.name for f in fields(types[section])]
            for key in values if isinstance(values, dict) else ():
                if key not in known:
                    raise ConfigError(f"[{section}] has no {key}", at=at, remedy=f"it has {', '.join(known)}")
            try:
                parts[section] = msgspec.convert(values, types[section])
            except msgspec.ValidationError as error:
                raise ConfigError(f"[{section}] {error}", at=at) from None
        config = cls(**parts)
        size = config.collector.ring_megabytes
        if size < 1 or size & (size - 1):
            raise ConfigError("[collector] ring_megabytes is no power of two", at=at, remedy="say 16 or 32")
        return config

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Read a YAML file; raises ConfigError."""
        try:
            return cls.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, at=path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"can't be read: {error}", at=path) from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = Location(path, mark.line + 1, mark.column + 1) if mark else Location(path)
            raise ConfigError(f"is no YAML: {error.problem}", at=where) from None
        except yaml.YAMLError as error:
            raise ConfigError(f"is no YAML: {error}", at=path) from None

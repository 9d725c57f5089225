"""Own losses from a Python module that the user names on the command line; a configuration never names code.

The module has ``LOSSES``: a mapping of names to functions that are given ``scale_of(pair)`` and return a ``clipkit.losses.base.Loss``.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path

from clipkit.building import LossFactory


@dataclass(frozen=True)
class Plugin:
    """A module of the user and what it brings.

    Args:
        module: Its dotted name.
        sha256: Hash of its file, kept with the run.
        losses: Its losses by name.
    """

    module: str
    sha256: str
    losses: dict[str, LossFactory]


def load_plugin(module: str) -> Plugin:
    """Import a module and take its losses.

    Raises:
        ValueError: If it cannot be found or has no ``LOSSES``.
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"--plugin {module}: {error}; is it importable from here (PYTHONPATH)?") from error
    losses = getattr(found, "LOSSES", None)
    if not isinstance(losses, dict) or not losses or not all(callable(factory) for factory in losses.values()):
        raise ValueError(f"--plugin {module}: the module has no LOSSES, a dict of names to functions that make a loss")
    file = Path(found.__file__ or "")
    return Plugin(module, hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "", dict(losses))


def check_plugin(recorded: dict[str, str] | None, plugin: Plugin | None) -> str | None:
    """Hold a resumed run's plugin against the one given now.

    Returns:
        A warning for the user, or None.

    Raises:
        ValueError: If the run was made with another plugin.
    """
    now = plugin.module if plugin else None
    before = recorded["module"] if recorded else None
    if now != before:
        cure = f"pass --plugin {before}" if before else "leave --plugin out"
        raise ValueError(f"the run was made {f'with the plugin {before}' if before else 'without a plugin'}; {cure}")
    if recorded and plugin and recorded["sha256"] != plugin.sha256:
        return f"warning: the plugin {now} is not the file that the run was started with (SHA-256 differs)"
    return None

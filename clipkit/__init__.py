"""clipkit: CLIP-style contrastive pretraining on Lightning.

The verbs of the command line as functions: ``load``, ``fit``, ``evaluate``, ``export``, ``embed``, ``search``. They are
imported on first use: ``import clipkit`` itself loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipkit.api import embed, evaluate, export, fit, load, search

__version__ = "0.1.0"
__all__ = ["embed", "evaluate", "export", "fit", "load", "search"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from clipkit import api

        return getattr(api, name)
    raise AttributeError(f"module 'clipkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]

"""Names that several places must agree on."""

from __future__ import annotations

DISTRIBUTION = "clipkit-train"
"""What `pip install` takes; the import and the command are `clipkit`."""

MAY_CHANGE_ON_RESUME = (
    "run",
    "trainer.devices",
    "trainer.nodes",
    "data.workers",
    "data.cache",
    "data.trace",
    "checkpoint.every",
    "checkpoint.keep_last",
    "evaluate.every",
    "logging",
)
"""Keys that a run may be resumed with other values of: they move no sample and no gradient."""

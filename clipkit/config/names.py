"""Names that several places must agree on."""

from __future__ import annotations

DISTRIBUTION = "clipkit-train"
"""What `pip install` takes; the import and the command are `clipkit`."""

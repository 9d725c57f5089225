"""What clipkit adds to a training step with everything on.

As ``overhead.py``, with an average of the weights, clipping, layer-wise rates, short logging windows and checkpoints by the clock; the guard
against non-finite gradients is always on.
"""

from __future__ import annotations

import sys

from common import quick
from overhead import compare

EVERYTHING = (
    "optim.ema=0.999",
    "optim.clip_norm=1.0",
    "optim.layer_decay=0.8",
    "logging.every=20 steps",
    "checkpoint.every=1h",
)


def main() -> int:
    """500 alternating steps (``--quick``: 200)."""
    return compare("overhead_all", 200 if quick(__doc__ or "") else 500, EVERYTHING)


if __name__ == "__main__":
    sys.exit(main())

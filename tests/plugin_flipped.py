"""``--plugin tests.plugin_flipped``: step 6."""

from tests.rank_faults import Flip

LOSSES = {"flipped": lambda scale_of: Flip(scale_of(("image", "text")), 6)}

"""``--plugin tests.plugin_spoilt``: steps 6 to 8."""

from tests.rank_faults import Spoiler

LOSSES = {"spoilt": lambda scale_of: Spoiler((6, 7, 8))}

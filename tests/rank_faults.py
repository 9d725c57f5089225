"""What goes wrong on rank 1 in ``test_guard_ranks``; each plugin beside this file names one of them."""

import torch

from clipkit import distributed
from clipkit.losses.base import Loss


class Spoiler(Loss):
    """No loss, but in some steps of 16 pairs the gradient of rank 1 is no number."""

    def __init__(self, steps):
        super().__init__()
        self.positions = {16 * (step - 1) for step in steps}

    def forward(self, features, batch):
        bad = distributed.rank() == 1 and batch["position"] in self.positions
        return features["image"].pooled.sum() * (float("nan") if bad else 0.0)


class Flip(Loss):
    """No loss, but in one step the last bit of rank 1's temperature is flipped."""

    def __init__(self, scale, index):
        super().__init__()
        self.scale, self.index = [scale], index  # a list: the scale is no part of this loss
        self.seen = 0

    def forward(self, features, batch):
        self.seen += 1
        if distributed.rank() == 1 and self.seen == self.index:
            self.scale[0].log_scale.data.view(torch.int32).bitwise_xor_(1)
        return features["image"].pooled.sum() * 0.0

"""What ranks do in test_hangs.py; apart, so that they import little."""

import torch
import torch.distributed as dist

from clipkit import distributed


def wait_in_vain():
    """Rank 0 waits in a group of its own, which rank 1 does not enter."""
    group = dist.new_group(backend="gloo")
    distributed._CPU_GROUPS.append(group)
    distributed.set_timeout(0.5)
    try:
        if dist.get_rank() == 0:
            dist.all_reduce(torch.ones(1), group=group)
    except RuntimeError as error:
        return "timed out" if "imed out" in str(error) or "imeout" in str(error) else str(error)
    finally:
        distributed._CPU_GROUPS.remove(group)
        distributed.set_timeout(1800)
    return ""

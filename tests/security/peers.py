"""A hostile rank: what it sends to the others of its group. The functions named ``send_...`` run on real gloo ranks."""

from __future__ import annotations

import pickle
from pathlib import Path

from tests.conftest import Ranks
from tests.security.lab import Exploit, Lab, Payload


def send_object(marker: str) -> None:
    """Rank 1 gives its payload to torch's object collective."""
    import torch.distributed as dist

    found: list[object] = [None, None]
    dist.all_gather_object(found, Payload(Path(marker)) if dist.get_rank() == 1 else None)


def send_pickle(marker: str) -> str:
    """Rank 1 sends a pickle where clipkit's exchange expects JSON; what the other says of it."""
    import torch

    from clipkit.distributed import all_gather_variable, gather_json, rank

    if rank() == 1:
        held = bytearray(pickle.dumps(Payload(Path(marker)), protocol=0))
        all_gather_variable(torch.frombuffer(held, dtype=torch.uint8))
        return ""
    try:
        return f"taken: {gather_json({'step': 1})}"
    except ValueError as error:
        return f"refused: {error}"


def on_two_ranks(lab: Lab, job: str) -> list[str]:
    """What the ranks answer to a job of this file."""
    ranks = Ranks(2)
    try:
        return ranks.run(__file__, job, str(lab.marker))
    finally:
        ranks.close()


def peers_here(lab: Lab) -> None:
    """Bytes of a peer are JSON or an error."""
    said = on_two_ranks(lab, "send_pickle")[0]
    assert said.startswith("refused"), said


EXPLOITS = (Exploit("object collectives", lambda lab: on_two_ranks(lab, "send_object"), peers_here),)

"""A forked process becomes a rank of ``clipkit fit``, as torchrun would have started it but for the imports, which are done."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def fit_as_rank(
    arguments: Sequence[str], log: Path, rank: int, *, world: int, port: int, before: Callable[[], None] | None = None
) -> NoReturn:
    """Run clipkit's command line as one of ``world`` ranks and end this process with its code.

    Args:
        arguments: After ``clipkit``.
        log: Where its output is added.
        rank: Which of them.
        world: How many; one alone is no launcher's rank.
        port: Where they meet.
        before: Called once this process is a rank: to set it a trap.
    """
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if world > 1:
            numbers = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": world,
                "LOCAL_WORLD_SIZE": world,
                "GROUP_RANK": 0,
            }
            os.environ |= {name: str(number) for name, number in numbers.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        from clipkit.cli.main import run
        from clipkit.data.worker import kill_left_over
        from clipkit.processes import die_with_parent

        die_with_parent()
        if before is not None:
            before()
        code = run(list(arguments))
        kill_left_over()  # a fork that leaves by os._exit runs no atexit
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

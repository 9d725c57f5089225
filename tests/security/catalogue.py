"""Every exploit, for the tests and for ``benchmarks/exploits.py``."""

from tests.security import configs, documents, peers, pictures, programs, remote, shards, weights

EXPLOITS = (
    *shards.EXPLOITS,
    *weights.EXPLOITS,
    *programs.EXPLOITS,
    *pictures.EXPLOITS,
    *configs.EXPLOITS,
    *remote.EXPLOITS,
    *documents.EXPLOITS,
    *peers.EXPLOITS,
)

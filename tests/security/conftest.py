"""One trained run for all exploits, a folder for each."""

import pytest

from tests.security.lab import Lab, World


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def lab(tmp_path, world):
    return Lab(tmp_path, world)

import re

import pytest

from clipkit.cli.main import run as command_line
from clipkit.config import shipped
from clipkit.config.catalog import status


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_configuration_says_whether_it_was_run(name):
    said = status(shipped()[name])
    ours = re.fullmatch(r"run by us \(.+\)", said)
    assert ours or re.fullmatch(r"published elsewhere \(.+\), not run|not run", said), said


def test_the_list_shows_the_status(capsys):
    assert command_line(["config", "list"]) == 0
    listed = capsys.readouterr().out
    assert "cc12m\n  Conceptual 12M: ResNet-50.\n  published elsewhere (open_clip docs/PRETRAINED.md" in listed
    assert all(f"{name}\n" in listed for name in shipped())

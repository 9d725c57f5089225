"""What the user did wrong is said in a few words, with code 2 and no traceback."""

import pytest

from clipkit.cli.main import run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fitt"], "No such command 'fitt'"),
        (["fit"], "Missing argument 'config'"),
        (["fit", "a.yaml", "--no-such-option"], "--no-such-option"),
        (["evaluate", "model"], "--data"),
        (
            ["evaluate", "m", "--data", "x", "--batch-size", "-3"],
            "'--batch-size': -3: out of range; allowed: at least 1",
        ),
        (["embed", "m", "x", "--out", "o", "--batch-size=-3"], "'--batch-size': -3: out of range; allowed: at least 1"),
        (["embed", "m", "x", "--out", "o", "--workers", "1.5"], "'--workers': 1.5: Input should be a valid integer"),
        (["search", "x", "q", "-k", "0"], "'-k' / '--k': 0: out of range; allowed: at least 1"),
        (["search", "x", "--serve", "--port", "99999"], "'--port': 99999: out of range; allowed: 0 to 65535"),
        (["export", "m", "--out", "o", "--weight", "x"], "'--weight': x: Input should be a valid number"),
        (["data", "unpack"], "No such command 'unpack'"),
        (["config"], "Usage"),
        ([], "Usage"),
    ],
)
def test_a_command_line_that_is_wrong_is_bad_input(arguments, words, capsys):
    code = run(arguments)
    said = capsys.readouterr()
    assert code == 2
    assert words in said.err + said.out
    assert "Traceback" not in said.err


def test_help_is_no_error(capsys):
    assert run(["--help"]) == 0
    assert "fit" in capsys.readouterr().out


def test_an_error_of_ours_shows_where_it_happened(monkeypatch, capsys):
    monkeypatch.setattr("clipkit.api.fit", lambda *args, **kwargs: 1 / 0)
    assert run(["fit", "x.yaml"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err

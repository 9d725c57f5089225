"""A bar on a terminal, lines elsewhere."""

from clipkit.data import meter


def test_lines_off_a_terminal_tell_what_is_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    with meter.Meter("indexing 40 shards of /data", 40, terminal=False) as shown:
        for _ in range(40):
            now[0] += 3
            shown.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "indexing 40 shards of /data",
        "indexing 40 shards of /data: 4 done, 1m48s left",
        "indexing 40 shards of /data: 8 done, 1m36s left",
    ]
    assert len(lines) == 10


def test_a_bar_on_a_terminal(capsys):
    with meter.Meter("indexing 2 shards", 2, terminal=True) as shown:
        shown.advance()
        shown.advance()
    assert "indexing 2 shards 2/2" in capsys.readouterr().err

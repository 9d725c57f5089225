"""``clipkit evaluate --out``: what may be replaced, and what is refused before anything is opened or evaluated."""

import pytest

from clipkit.cli.main import run

FOREIGN = {
    "pairs.csv": "filepath,caption\na.png,a dog\n",
    "notes.md": "# what I found\n",
    "config.json": '{"dataset": "mine", "metrics": {}}',
    "benchmark.json": '{"dataset": "a", "model": "b", "pretrained": "", "task": "c", "metrics": {}, "language": "en"}',
    "deep.json": "[" * 100000,
    "bytes.csv": "\udcff",
}


@pytest.fixture
def unopened(monkeypatch):
    """Fails if the data is opened or the model loaded."""
    monkeypatch.setattr("clipkit.cli.evaluate.task_spec", lambda *_, **__: pytest.fail("opened"))
    monkeypatch.setattr("clipkit.api.load", lambda *_, **__: pytest.fail("loaded"))


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_somebody_else_is_kept(name, unopened, tmp_path, capsys):
    out = tmp_path / name
    out.write_text(FOREIGN[name], errors="surrogateescape")
    held = out.read_bytes()
    assert run(["evaluate", "model", "--data", "data", "--out", str(out)]) == 2
    assert f"{name}: this file was not written by clipkit evaluate; name another one" in capsys.readouterr().err
    assert out.read_bytes() == held


@pytest.mark.parametrize("ending", ["csv", "md", "json"])
def test_results_of_evaluate_are_replaced(ending, squares, tiny_model, tmp_path):
    out = tmp_path / "new" / f"x.{ending}"
    arguments = ["evaluate", str(tiny_model), "--data", str(squares()), "--out", str(out)]
    assert run(arguments) == 0
    first = out.read_bytes()
    assert run([*arguments, "--seed", "1"]) == 0
    assert out.read_bytes() != first
    out.write_bytes(b"")  # as `mktemp` leaves it
    assert run(arguments) == 0
    assert out.read_bytes() == first
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    "place", ["/proc/x.json", "/proc/x", "/dev/null/x", "/dev/null/x.csv", "FILE/a/b.md", "LONG.json"]
)
def test_where_nothing_can_be_written_is_found_before(place, unopened, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = place.replace("FILE", f"{tmp_path}/file").replace("LONG", f"{tmp_path}/{'x' * 300}")
    assert run(["evaluate", "model", "--data", "data", "--out", out]) == 2
    said = capsys.readouterr().err
    assert f"error: {out}: nothing can be written in " in said
    assert "name another place" in said


def test_a_foreign_file_in_a_folder_of_results_is_kept(squares, tiny_model, tmp_path, capsys):
    arguments = ["evaluate", str(tiny_model), "--data", str(squares()), "--out", str(tmp_path / "out")]
    assert run(arguments) == 0
    (place,) = (tmp_path / "out").iterdir()
    place.write_text('{"mine": 1}')
    assert run(arguments) == 2
    assert f"{place}: this file was not written by clipkit evaluate" in capsys.readouterr().err
    assert place.read_text() == '{"mine": 1}'

"""Many shards at once: sidecars, the lists of their folders, what cannot be indexed."""

import json
import os

import pytest

from clipkit.cli.main import run
from clipkit.data.catalogue import open_catalogue
from clipkit.data.index import VERSION, build_index, cached_path, read_sidecar, sidecar_path
from clipkit.data.indexing import index_shards, write_folder_index
from clipkit.data.listing import entry_of, read_lists
from clipkit.data.source import Source, expand_shards
from clipkit.data.tar import ShardError

from .conftest import write_tar


@pytest.fixture
def folder(tmp_path):
    """Ten shards of two samples in a folder."""
    home = tmp_path / "shards"
    home.mkdir()
    for number in range(10):
        write_tar(home / f"{number}.tar", [("a.jpg", b"1"), ("a.txt", b"x" * number), ("b.jpg", b"3")])
    return home


def listed(place):
    return {entry["name"]: entry for entry in json.loads(place.read_text())["shards"]}


def barred(folder):
    """Nothing can be renamed over a folder, nor opened where one is: as a folder that cannot be written, also for root."""
    for path in folder.glob("*.tar"):
        sidecar_path(path).mkdir()
    for name in ("index.json", ".clipkit-index.lock"):
        (folder / name).mkdir()


def test_the_verb_says_what_there_is_and_what_was_fresh(folder, capsys, monkeypatch):
    assert run(["data", "index", str(folder / "{0..3}.tar")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "indexed 4 shards, 0 were indexed already: 8 samples in 4 shards",
        "fields: jpg 8, txt 4",
        f"listed in {folder / 'index.json'}",
    ]
    assert run(["data", "index", str(folder), str(folder / "[01].tar"), "--workers", "2"]) == 0
    captured = capsys.readouterr()
    assert "indexed 6 shards, 4 were indexed already: 20 samples in 10 shards" in captured.out
    assert f"indexing 10 shards of {folder}" in captured.err
    assert "".join(sorted(listed(folder / "index.json"))) == "".join(f"{number}.tar" for number in range(10))
    for path in folder.glob("*.tar"):
        index = read_sidecar(sidecar_path(path))
        assert index.fingerprint == build_index(path).fingerprint
        assert listed(folder / "index.json")[path.name] == {
            "name": path.name,
            "count": 2,
            "size": path.stat().st_size,
            "fingerprint": index.fingerprint,
        }
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_shards_that_cannot_be_indexed_are_all_named_and_the_others_kept(folder, capsys):
    write_folder_index(folder)
    bad = [folder / f"{number}.tar" for number in (1, 3, 4, 7, 9)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:1030] + b"\xff" + path.read_bytes()[1031:])
    assert run(["data", "index", str(folder), "--workers", "2"]) == 2
    captured = capsys.readouterr()
    assert "indexed 0 shards, 5 were indexed already: 10 samples in 5 shards" in captured.out
    assert captured.err.count("fetch or pack") == 3
    assert all(str(path) in captured.err for path in bad)
    assert "5 shards cannot be indexed" in captured.err
    assert sorted(listed(folder / "index.json")) == ["0.tar", "2.tar", "5.tar", "6.tar", "8.tar"]
    with pytest.raises(ShardError) as caught:
        index_shards([str(bad[0])], None).raise_refusals()
    assert (caught.value.shard, caught.value.offset) == (str(bad[0]), 1024)
    assert run(["data", "index", str(folder / "nothing*")]) == 2


@pytest.mark.parametrize("entry", [{"count": -1}, {"count": 1 << 70}, None])
def test_a_list_of_a_stranger_with_no_counts_is_not_believed(folder, entry):
    write_folder_index(folder)
    place = folder / "index.json"
    before = listed(place)["0.tar"]
    deep = "[" * 100_000 + "]" * 100_000
    told = {"version": VERSION, "shards": [before | entry]} if entry else None
    place.write_text(json.dumps(told) if told else deep)
    assert entry_of(read_lists(str(folder), None), str(folder / "0.tar"), "0.tar") is None


def test_the_list_is_merged(folder):
    write_folder_index(folder)
    before = listed(folder / "index.json")
    (folder / "4.tar").unlink()
    for name in ("5.tar", "6.tar"):
        write_tar(folder / name, [(f"{number}.txt", b"") for number in range(40)])  # another size
    index_shards([str(folder / "5.tar")], None)
    after = listed(folder / "index.json")
    assert sorted(set(before) - set(after)) == ["4.tar", "6.tar"]  # one vanished, one is another
    assert after["5.tar"]["count"] == 40
    assert {name: after[name] for name in after if name != "5.tar"} == {
        name: before[name] for name in before if name not in ("4.tar", "5.tar", "6.tar")
    }
    stamp = (folder / "index.json").stat().st_mtime_ns
    index_shards(expand_shards(str(folder / "[0-3].tar")), None)
    assert (folder / "index.json").stat().st_mtime_ns == stamp  # nothing new, nothing written


def test_of_a_folder_that_cannot_be_written_all_goes_to_the_cache(folder, tmp_path, monkeypatch, capsys):
    barred(folder)
    cache = tmp_path / "cache"
    monkeypatch.setenv("CLIPKIT_CACHE", str(cache))
    assert run(["data", "index", str(folder)]) == 0
    out = capsys.readouterr().out
    place = cached_path(folder / "index.json", cache)
    assert f"10 sidecars lie in {cache}/index" in out
    assert f"listed in {place}" in out
    assert len(listed(place)) == 10
    assert len(list((cache / "index").iterdir())) == 11  # no lock stays
    monkeypatch.setattr("clipkit.data.catalogue.load_index", lambda *_: pytest.fail("opened a sidecar"))
    source = Source("s", tuple(expand_shards(str(folder))))
    assert open_catalogue(source, cache).counts.tolist() == [2] * 10
    monkeypatch.undo()
    write_tar(folder / "3.tar", [(f"{number}.txt", b"") for number in range(40)])
    assert open_catalogue(source, cache).counts[3] == 40


def test_what_can_be_kept_nowhere_is_an_error(folder, tmp_path, monkeypatch, capsys):
    barred(folder)
    monkeypatch.setenv("CLIPKIT_CACHE", str(folder / "0.tar"))  # a file is no folder
    assert run(["data", "index", str(folder)]) == 2
    captured = capsys.readouterr()
    assert "10 indexes could not be kept" in captured.err
    assert "CLIPKIT_CACHE" in captured.err
    with pytest.raises(OSError, match=r"index\.json could not be written"):
        write_folder_index(folder)


def test_a_sidecar_beside_the_shard_is_found_from_another_folder_of_work(folder, monkeypatch):
    monkeypatch.chdir(folder)
    report = index_shards(sorted(os.listdir(".")), None)
    assert (report.indexed, report.lists) == (10, [folder.joinpath("index.json").relative_to(folder)])
    assert index_shards([str(path) for path in folder.glob("*.tar")], None).fresh == 10

"""Suites: each file is one, means are right, missing sets are listed; sets on a server are copied once."""

import importlib.util
import json
from pathlib import Path

import pytest

from clipkit.cli.main import run
from clipkit.config.single import validated
from clipkit.evaluation.kinds import KINDS
from clipkit.evaluation.named_sets import classnames_of, templates_of
from clipkit.evaluation.places import local_place
from clipkit.evaluation.result import Result
from clipkit.evaluation.suites import find_sets, load_suite, suite_names, summary
from clipkit.evaluation.zero_shot import ZeroShot

_SPEC = importlib.util.spec_from_file_location("web", Path(__file__).parents[1] / "data" / "web.py")
web_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(web_module)


def test_every_suite_is_one():
    assert set(suite_names()) >= {"datacomp38", "vtab", "imagenet-shift", "retrieval", "mini"}
    for name in suite_names():
        suite = load_suite(name)
        for entry in suite.sets.values():
            assert entry.task in KINDS
            keys = {"kind": entry.task, "data": "x", **entry.options}
            assert set(entry.metric) <= set(validated(KINDS[entry.task].spec, keys, name).figures)
            if "classnames" in entry.options:
                assert classnames_of(entry.options["classnames"])
                assert len(templates_of(entry.options["templates"])) == 80
    assert load_suite("imagenet-shift").sets["imagenetv2"].options["classnames"] == "imagenet1k"
    assert len(load_suite("datacomp38").sets) == 38
    assert len(load_suite("vtab").sets) == 19
    with pytest.raises(ValueError, match="did you mean 'vtab'"):
        load_suite("vtabb")


def test_the_normalised_mean():
    suite = load_suite("datacomp38")
    results = [
        Result("cifar10", "m", "", "zeroshot_classification", {"acc1": 0.55}),
        Result("vtab/pcam", "m", "", "zeroshot_classification", {"acc1": 0.5}),
    ]
    found = summary(suite, results)
    assert found["mean"] == pytest.approx(0.525)
    assert found["normalised_mean"] == pytest.approx(0.25)  # a half of what is above a tenth, and nothing
    assert len(found["missing"]) == 36
    results.append(Result("mnist", "m", "", "zeroshot_classification", {"acc1": None}))
    assert summary(suite, results)["mean"] is None, "a figure is missing: a mean of the others would not say so"


def test_sets_are_found_under_their_usual_names(squares, tmp_path):
    root = squares().parent
    (root / "wds_classification").rename(root / "wds_vtab-dtd_test")
    found, missing = find_sets(load_suite("vtab"), str(root), tmp_path)
    assert found == {"vtab/dtd": str(root / "wds_vtab-dtd_test")}
    assert len(missing) == 18


def test_an_own_suite_from_the_command_line(squares, tiny_model, tmp_path, capsys):
    root = squares().parent
    file = tmp_path / "own.yaml"
    file.write_text(
        "description: mine\nsource: me\nsets:\n  classification: {task: zero_shot, metric: acc1, samples: 10}\n"
        "  elsewhere: {task: retrieval, metric: text_retrieval_recall@1}\n"
    )
    arguments = ["evaluate", str(tiny_model), "--suite", str(file), "--root", str(root), "--out", str(tmp_path / "out")]
    assert run(arguments) == 0
    found = json.loads((tmp_path / "out" / "suites" / "own.json").read_text())
    assert found["missing"] == ["elsewhere"]
    line = found["sets"]["classification"]
    assert line["chance"] == 0.25
    assert found["normalised_mean"] == pytest.approx((line["value"] - 0.25) / 0.75)
    assert "1 of 2 sets are not there: elsewhere" in capsys.readouterr().err
    file.write_text(file.read_text().replace("samples: 10", "samples: 11"))
    assert run(arguments) == 2
    assert "10 samples, but the whole set has 11" in capsys.readouterr().err
    assert run(["evaluate", str(tiny_model), "--suite", str(file), "--root", str(tmp_path / "empty")]) == 2
    assert "none of its sets lies in" in capsys.readouterr().err


def test_a_set_on_a_server_is_copied_once(squares, tmp_path, caplog):
    root, web = squares(), web_module.Web()
    try:
        for path in root.rglob("*"):
            if path.is_file():
                web.files[f"/sets/squares/{path.relative_to(root)}"] = path.read_bytes()
        web.script["/sets/squares/test/1.tar"] = ["503", "half"]
        place = local_place(f"{web.url}/sets/squares", tmp_path / "cache")
        assert "fetched 5 files" in caplog.text
        assert ZeroShot(place).data.labels.tolist() == ZeroShot(root).data.labels.tolist()
        assert ZeroShot(place).data.name == "squares"
        hits = dict(web.hits)
        assert local_place(f"{web.url}/sets/squares", tmp_path / "cache") == place
        assert dict(web.hits) == hits, "it was fetched again"
        with pytest.raises(ValueError, match=r"nowhere: no test/nshards.txt there"):
            local_place(f"{web.url}/nowhere", tmp_path / "cache")
        suite = load_suite("vtab")
        for path in root.rglob("*"):
            if path.is_file():
                web.files[f"/all/wds_dtd/{path.relative_to(root)}"] = path.read_bytes()
        assert list(find_sets(suite, f"{web.url}/all", tmp_path / "cache")[0]) == ["vtab/dtd"]
    finally:
        web.close()


def test_digits(tmp_path):
    pytest.importorskip("sklearn")
    data = ZeroShot(local_place("sklearn:digits", tmp_path)).data
    assert len(data) == 1797
    assert data.classnames[3] == 'the number "three"'

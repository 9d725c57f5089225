import pytest

from clipkit.config import RunConfig, load_config


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("pairs.csv", "pairs", "loose"),
        ("/d/my pairs.v2.tsv", "my-pairs-v2", "loose"),
        ("../photos/", "photos", "loose"),
        ("ж.csv", "train", "loose"),
        ("/d/cc12m/{00000..00009}.tar", "cc12m", "shards"),
        ("/d/cc12m/*.tar", "cc12m", "shards"),
        ("/d/cc3m-{00000..00009}.tar", "cc3m", "shards"),
        ("embedded:train", "train", "shards"),
    ],
)
def test_a_path_is_one_source_of_the_name_of_its_file(path, name, kind):
    (source,) = load_config("demo", [f"data.train={path}"]).data.train.items()  # in place of the demo's, not beside it
    assert source[0] == name
    assert source[1].loose == (path if kind == "loose" else None)
    assert source[1].shards == ([path] if kind == "shards" else [])


def test_it_may_stand_in_a_file_or_come_from_python(tmp_path):
    (tmp_path / "base.yaml").write_text("base: demo\ndata: {train: a.csv, val: b.csv}\n")
    config = load_config(tmp_path / "base.yaml", ["data.train.a.weight=2"])
    assert list(config.data.train) == ["a"]
    assert (config.data.train["a"].loose, config.data.train["a"].weight) == ("a.csv", 2)
    assert config.data.val["b"].loose == "b.csv"
    tree = config.model_dump(mode="json") | {"data": config.data.model_dump(mode="json") | {"train": "a.csv"}}
    assert list(RunConfig.model_validate(tree).data.train) == ["a"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.train=a.csv", "data.train.a.weight=2"], "data.train is a path already"),
        (["data.train={a: {loose: a.csv, shards: b.tar}}"], "data.train.a.loose = 'a.csv': a source has either"),
        (["data.train="], "data.train"),
        (["data.train=a.tar", "data.pack.split=0.1", "checkpoint.keep_best=1"], "nothing to evaluate"),
        (["data.train=a.csv", "evaluate.tasks.a={kind: retrieval, data: x}"], "a task of this name comes with"),
        (["data.train=a.csv", "data.pack.split=1"], "data.pack.split = 1"),
    ],
)
def test_what_cannot_be_is_named(overrides, said):
    with pytest.raises(ValueError, match=said):
        load_config("finetune", overrides)


def test_a_figure_of_the_held_out_part_may_decide(tmp_path):
    config = load_config("finetune", ["data.train=a.csv", "checkpoint.best=val/a/text_retrieval_recall@1"])
    assert config.best_figure == "val/a/text_retrieval_recall@1"

"""The parts of the demo; CI runs the whole of it as a program."""

import json

from PIL import Image

from clipkit.cli.main import run as command_line
from clipkit.config import load_config, shipped
from clipkit.demo.gallery import draw_gallery
from clipkit.demo.proofs import STEPS, Proofs
from clipkit.demo.story import MARKER, _config, _make_room
from clipkit.demo.table import print_summary


def test_a_folder_that_is_no_demos_is_refused_untouched(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert command_line(["demo", "--quick", "--out", str(tmp_path)]) == 2
    assert "is no demo's folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_demos_folder_is_made_anew(tmp_path):
    out = tmp_path / "demo"
    config = _config(out, quick=True)
    assert config.run == str(out)
    assert json.loads((out / MARKER).read_text()) == {"finished": False}
    _make_room(out)
    assert not out.exists()
    _make_room(out)


def test_the_quick_demo_differs_from_the_demo_in_length_and_augmentation_alone():
    whole, quick = load_config("demo"), load_config("demo-quick")
    assert set(shipped()) >= {"demo", "demo-quick"}
    as_quick = whole.data.model_copy(update={"augment": quick.data.augment})
    assert (whole.model, as_quick, whole.losses) == (quick.model, quick.data, quick.losses)
    assert quick.trainer.length.steps(256) < whole.trainer.length.steps(256)


def test_the_proofs_train_the_demos_own_configuration_for_a_short_stretch(tmp_path):
    (tmp_path / "proofs").mkdir()
    config = load_config(Proofs(load_config("demo-quick"), tmp_path)._write("whole"))
    assert config.trainer.length.steps(64) == STEPS
    assert config.evaluate.tasks == {}
    assert config.losses == load_config("demo").losses


def test_right_pictures_are_framed_green(tmp_path):
    red, blue = Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 255))
    rows = [("a red thing", [(red, True), (blue, False)]), ("a long text " * 12, [(blue, False), (red, False)])]
    draw_gallery(rows, tmp_path / "gallery.png", title="two pictures")
    sheet = Image.open(tmp_path / "gallery.png").convert("RGB")
    colours = {colour for _, colour in sheet.getcolors(maxcolors=1 << 20)}
    assert (22, 140, 70) in colours
    assert sheet.getpixel((330, 66)) == (22, 140, 70)
    assert sheet.getpixel((330 + 108, 66)) == (222, 222, 222)


def test_where_pixels_win_the_table_says_so(tmp_path, capsys):
    row = {"acc1": 0.2, "acc5": 0.5, "pixel_1nn": {"acc1": 0.3, "acc5": 0.4}, "chance": {"acc1": 0.01, "acc5": 0.05}}
    retrieval = {f"{way}_retrieval_recall@{k}": 0.5 for way in ("image", "text") for k in (1, 5)} | {"samples": 10}
    rows = dict.fromkeys(("style_transfer", "unseen", "subgroup"), row)
    print_summary(rows | {"retrieval": retrieval, "samples_per_second": 1000.0, "seconds": 60.0}, tmp_path)
    said = capsys.readouterr().out
    assert said.count("pixels win") == 3
    assert "clipkit evaluate" in said

"""The language of filters: what it reads, and where it says it was left."""

import pytest

from clipkit.config import SourceSpec
from clipkit.config.expression import Compare, Many, Not, names, parse_expression


def test_words_bind_as_in_python():
    found = parse_expression("a > 1 or b<=-2.5e1 and not (c != d or not not e == .5)")
    c_or_e = Many("or", (Compare("c", "!=", "d"), Not(Not(Compare("e", "==", 0.5)))))
    assert found == Many("or", (Compare("a", ">", 1.0), Many("and", (Compare("b", "<=", -25.0), Not(c_or_e)))))
    assert names(found) == ["a", "b", "c", "d", "e"]
    assert parse_expression(" 2 < a ") == parse_expression("((2<a))") == Compare(2.0, "<", "a")
    assert parse_expression("nothing > 1 and order < 2") == Many(
        "and", (Compare("nothing", ">", 1.0), Compare("order", "<", 2.0))
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the end at character 1"),
        ("a", "the end at character 2"),
        ("a > ", "the end at character"),
        ("a > 1 b > 2", "'b > 2' at character 7"),
        ("(a > 1", "the end at character 7"),
        ("a > 1)", r"'\)' at character 6"),
        ("a = 1", "'= 1' at character 3"),
        ("a > 5x", "'5x' at character 5"),
        ("a > 1e999", "'1e999' at character 5"),
        ("and > 1", "'and > 1' at character 1"),
        ("a > 1 & b > 2", "'& b > 2' at character 7"),
        ("a > 'x'", "\"'x'\" at character 5"),
        ("__import__('os').system('true') > 1", "at character 12"),
        ("1 < 2", "compares no column"),
        ("0 < a < 1", "two comparisons in a row at character 7; join them with 'and'"),
        ("not " * 41 + "a > 1", "more than 40 levels"),
        ("(" * 500 + "a > 1" + ")" * 500, "more than 40 levels"),
        ("a > 1 and " * 300 + "a > 1", "at most 2,000"),
    ],
)
def test_what_is_no_filter_is_refused_with_its_place(text, says):
    with pytest.raises(ValueError, match=says):
        parse_expression(text)


def test_a_source_is_held_against_it_without_data():
    assert SourceSpec(shards="x", filter="side > 9").filter == "side > 9"
    with pytest.raises(ValueError, match="character 6"):
        SourceSpec(shards="x", filter="side => 9")
    with pytest.raises(ValueError, match="name a class"):
        SourceSpec(shards="x", repeat={"threshold": 0.1})
    with pytest.raises(ValueError, match="repeat.column"):
        SourceSpec(shards="x", repeat={"column": "a/b"})

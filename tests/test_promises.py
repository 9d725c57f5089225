"""A promise of the documents names a test that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`((?:tests|benchmarks)/[\w/]+\.py)?(?:::)?(test_\w+)?`")


def promises(text):
    """Each file that a document names, and each function, which is of the file of tests named last."""
    tests = None
    for found in NAMED.finditer(text):
        tests = found[1] if found[1] and found[1].startswith("tests/") else tests
        if found[1] or found[2]:
            yield tests if found[2] else found[1], found[2]


@pytest.mark.parametrize("document", ["docs/reliability.md", "SECURITY.md"])
def test_every_test_that_a_promise_names_is_there(document):
    found = list(promises((ROOT / document).read_text()))
    assert len(found) >= 5
    for file, function in found:
        assert (ROOT / file).is_file(), file
        assert function is None or f"\ndef {function}(" in (ROOT / file).read_text(), (file, function)


def test_every_row_of_promises_names_a_test():
    rows = re.findall(r"^\| (.+) \| (.+) \|$", (ROOT / "docs" / "reliability.md").read_text(), re.M)
    rows = [row for row in rows if not re.fullmatch(r"-+", row[0]) and row[0] not in ("promise", "name", "exit code")]
    codes = [row for row in rows if row[0].isdigit() or row[0].startswith("`train/")]
    silent = [
        row for row in rows if row not in codes and not re.search(r"tests/|benchmarks/|test_|above|the same", row[1])
    ]
    assert len(rows) > 40
    assert not silent

"""Key lists as text and as DataComp's subset files."""

import numpy as np
import pytest

from clipkit.data.key_list import KeyList, key_words


def test_keys_of_a_text_file(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_bytes(b"a/1\r\n\n\xff 2\nb\nb\n")
    held = KeyList(str(path))
    assert held.holds(*key_words([b"b", b"a/1", b"\xff 2", b"1", b"a", b""])).tolist() == [True] * 3 + [False] * 3
    assert not held.of_uids


def test_uids_of_datacomp_are_compared_in_all_their_bits(tmp_path):
    pairs = [(3, 9), (3, 1), (3, 5), (2**64 - 1, 7), (0, 1)]
    np.save(tmp_path / "uids.npy", np.array(pairs, "u8,u8"))
    held = KeyList(str(tmp_path / "uids.npy"))
    asked = np.array([*pairs, (3, 2), (3, 10), (9, 3), (2**64 - 1, 8), (1, 1)], np.uint64)
    assert held.holds(asked[:, 0], asked[:, 1]).tolist() == [True] * 5 + [False] * 5


def test_what_is_no_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such list"):
        KeyList(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    np.save(tmp_path / "other.npy", np.arange(4))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("0123")
    for name, says in [
        ("empty.txt", "no key"),
        ("other.npy", "dtype int64.*u8,u8"),
        ("objects.npy", "no list"),
        ("text.npy", "no list"),
    ]:
        with pytest.raises(ValueError, match=says):
            _ = KeyList(str(tmp_path / name)).words

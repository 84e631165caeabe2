import pytest

from sparsehyper._util.text import listed, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("shoes × 日本 é", "shoes × 日本 é"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b\x9bm\x7f", r"a\u2028b\x9bm\x7f"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
        ("\U000e0041", r"\U000e0041"),
        ("می\u200cخواهم 👩\u200d🔬", "می\u200cخواهم 👩\u200d🔬"),
        ("", ""),
    ],
)
def test_what_is_no_writing_is_shown_by_its_escape(text, shown):
    assert printable(text) == shown
    printable(text).encode()


def test_long_lists_are_cut():
    assert listed(["a", 2]) == "'a', 2"
    assert listed(range(1025)).endswith("8, 9 and 1,015 more")

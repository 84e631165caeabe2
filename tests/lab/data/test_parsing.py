import json

import pytest

from sparsehyper.lab.data import (
    Alphabets,
    Hue,
    Permuted,
    Rotated,
    Split,
    maker_from_config,
    parse_tasks,
)

MAKERS = {
    "split": Split(2),
    "split:5": Split(5),
    "split:2,all": Split(2, combinations=True),
    "split:0-1,2-3-4": Split([(0, 1), (2, 3, 4)]),
    "permuted": Permuted(10),
    "permuted:3": Permuted(3),
    "permuted:3,seed=7": Permuted(3, seed=7),
    "rotated:8": Rotated(8),
    "rotated:0,-15,30.5": Rotated([0, -15, 30.5]),
    "hue:5": Hue(5),
    "hue:-0.1,0,0.1": Hue([-0.1, 0, 0.1]),
    "split:2/hue:5": Hue(5, of=Split(2)),
    "alphabets": Alphabets(20),
    "alphabets:6": Alphabets(6),
    "alphabets:6,seed=2,ways=10": Alphabets(6, seed=2, ways=10),
    "split:0-1,2-3/permuted:2,seed=1": Permuted(2, seed=1, of=Split([(0, 1), (2, 3)])),
}


@pytest.mark.parametrize("text", MAKERS)
def test_parse(text):
    assert parse_tasks(text) == MAKERS[text]


@pytest.mark.parametrize("text", MAKERS)
def test_config_round_trip_through_json(text):
    config = json.loads(json.dumps(MAKERS[text].to_config()))
    assert maker_from_config(config) == MAKERS[text]


@pytest.mark.parametrize(
    "text",
    [
        "split:two", "split:2,some", "split:2,all,all", "split:0-", "split:", "split:-1",
        "permuted:x", "permuted:2,sed=1", "permuted:2,1", "rotated:15.5", "hue:0.1,blue",
        "rotated:", "permuted:2,ways=3", "alphabets:x", "alphabets:5,seed=1,seed=2",
    ],
)  # fmt: skip
def test_parse_lists_the_forms(text):
    with pytest.raises(ValueError, match=r"not understood.*forms: split:2 .*hue:5") as error:
        parse_tasks(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    "text", ["hue:2/split:2", "split:2/split:2", "permuted:2/rotated:2", "split:2/alphabets:5"]
)
def test_parse_joins_a_split_and_a_variation_only(text):
    with pytest.raises(ValueError, match=rf"a split and a variation of it, got '{text}'"):
        parse_tasks(text)


@pytest.mark.parametrize("text", ["splitt:2", "", "split:2/x", "Split"])
def test_unknown_kind_lists_the_valid_ones(text):
    with pytest.raises(ValueError, match=r"`tasks` must be one of 'split', 'permuted', 'rotated'"):
        parse_tasks(text)


def test_unknown_setting_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"no setting 'angle'; it has: 'angles', 'of'"):
        maker_from_config({"kind": "rotated", "angle": 3})


def test_unknown_kind_in_a_config():
    with pytest.raises(ValueError, match=r"got 'mixed'"):
        maker_from_config({"kind": "mixed"})

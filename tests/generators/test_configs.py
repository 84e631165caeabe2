from __future__ import annotations

import json

import pytest

from sparsehyper.generators import (
    Butterfly,
    Chunked,
    Composed,
    Dense,
    LowRank,
    Sparse,
    generator_from_config,
    parse_generator,
)


@pytest.mark.parametrize(
    "spec",
    [
        *(
            Sparse("geometric", 3.5, "local", 2.0, "prelu", True, 3),
            Sparse(5),
            Chunked(3, 9, "filter"),
        ),
        *(Dense(), Dense(30), Butterfly(4, True), LowRank(3, Chunked(7))),
        Composed({"*.bias": Dense(), "*": LowRank(2)}),
    ],
)
def test_a_config_goes_through_json_and_back(spec):
    assert generator_from_config(json.loads(json.dumps(spec.to_config()))) == spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("sparse", Sparse()),
        ("sparse:growth=8,topology=local,sigma=2.5", Sparse(growth=8, topology="local", sigma=2.5)),
        ("sparse:fan_in=4,activation=none,bias=true", Sparse(fan_in=4, bias=True)),
        ("sparse:fan_in=geometric", Sparse(fan_in="geometric")),
        ("chunked:chunks=9,hidden=20", Chunked(9, 20)),
        ("dense", Dense()),
        ("dense:hidden=30", Dense(30)),
        ("butterfly:stages=6,benes=true", Butterfly(6, True)),
        ("low_rank:rank=2/sparse:growth=8", LowRank(2, Sparse(growth=8))),
    ],
)
def test_the_command_line_form(text, spec):
    assert parse_generator(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sprase", "`generator` must be one of 'sparse', 'chunked', 'dense', .*; got 'sprase'"),
        (
            "sparse:depth=3",
            "`generator` of kind 'sparse' has no setting 'depth'; it has: 'fan_in', ",
        ),
        ("dense:width=3", "`generator` of kind 'dense' has no setting 'width'; it has: 'hidden'"),
        ("composed", "`generator` 'composed' has parts, which only Python can give"),
        ("dense/sparse", "`generator` of kind 'dense' has no setting 'of'"),
        ("sparse:growth", "settings are written name=value, got 'growth'"),
        ("sparse:growth=1", "`growth` must be greater than 1, got 1"),
    ],
)
def test_the_command_line_form_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        parse_generator(text)


@pytest.mark.parametrize("text", ["sparse:bias=maybe", "sparse:growth=big", "chunked:chunks=1.5"])
def test_the_command_line_form_refuses_a_value_of_another_type(text):
    value = text.partition("=")[2]
    with pytest.raises(TypeError, match=f"got .*{value}"):
        parse_generator(text)

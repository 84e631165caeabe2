from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from sparsehyper.adaptation.mixture import Mixture
from sparsehyper.lab.runs.ordinary import (
    Leaf,
    MixtureForm,
    build_leaf,
    form_from_dict,
    form_of,
    tensors_of,
    tensors_of_leaf,
)

SHAPE = (1, 2, 3)


def target(outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, outputs, bias=False)
    )


def linear(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, outputs))


def solved(outputs: int) -> nn.Module:
    """A target whose last layer was replaced by one with a bias."""
    model = target(outputs)
    model[3] = nn.Linear(4, outputs)
    return model


@pytest.mark.parametrize(
    "model",
    [
        target(3),
        solved(3),
        linear(3),
        Mixture([target(3), linear(3)]),
        Mixture([target(5), solved(4), linear(3)], [0.5, 0.25, 0.25], [1.0, 2.0, 0.5], 3),
        Mixture([Mixture([solved(4), solved(4)]), Mixture([target(3)], n_classes=3)], n_classes=3),
    ],
)
def test_a_model_is_made_again_of_its_form_and_its_tensors(model):
    form, leaves = form_of(model, SHAPE)
    form = form_from_dict(json.loads(json.dumps(dataclasses.asdict(form))))
    tensors = tensors_of(leaves)
    built = []
    for i, leaf in enumerate(form.leaves):
        own = tensors_of_leaf(tensors, i)
        module = build_leaf(leaf, target, SHAPE, list(own))
        module.load_state_dict(own)
        built.append(module)
    again, x = form.build(iter(built)), torch.randn(5, *SHAPE)
    torch.testing.assert_close(again(x), model(x))
    assert again(x).shape == (5, form.outputs)
    assert not {t.data_ptr() for t in again.state_dict().values()} & {
        t.data_ptr() for t in model.state_dict().values()
    }


def test_forms_are_as_wide_as_their_members_allow():
    a, b = Leaf("target", 3), Leaf("linear", 4)
    assert MixtureForm((a, b), (0.5, 0.5), (1.0, 1.0), 3).outputs == 3
    with pytest.raises(ValueError, match="`n_classes` must be at most 3, got 4"):
        MixtureForm((a, b), (0.5, 0.5), (1.0, 1.0), 4)
    with pytest.raises(ValueError, match=r"as many outputs, got \[3, 4\]"):
        MixtureForm((a, b), (0.5, 0.5), (1.0, 1.0))
    with pytest.raises(ValueError, match="`kind` must be one of 'target', 'linear'; got 'x'"):
        Leaf("x", 3)
    with pytest.raises(TypeError, match="unexpected"):
        form_from_dict({"kind": "linear", "outputs": 3, "code": "x"})

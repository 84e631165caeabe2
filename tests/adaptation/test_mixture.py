from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from sparsehyper.adaptation.mixture import Mixture


def test_class_probabilities_are_averaged_at_their_temperatures():
    a, b, x = nn.Linear(4, 5), nn.Linear(4, 3), torch.randn(6, 4)
    model = Mixture([a, b], [3.0, 1.0], [2.0, 0.5], n_classes=3)
    expected = 0.75 * (a(x)[:, :3] / 2).softmax(1) + 0.25 * (b(x) / 0.5).softmax(1)
    torch.testing.assert_close(model(x).exp(), expected)


def test_numbers_are_averaged():
    a, b, x = nn.Linear(4, 2), nn.Linear(4, 2), torch.randn(6, 4)
    torch.testing.assert_close(Mixture([a, b])(x), (a(x) + b(x)) / 2)


def test_the_state_holds_all_there_is():
    one = Mixture([nn.Linear(4, 3), nn.Linear(4, 3)], [0.9, 0.1], [2.0, 3.0], 3)
    other = Mixture([nn.Linear(4, 3), nn.Linear(4, 3)], n_classes=3)
    other.load_state_dict(one.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(one(x), other(x))


@pytest.mark.filterwarnings("ignore")  # PyTorch's own
def test_exports_to_onnx():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = Mixture([nn.Linear(4, 3), nn.Linear(4, 3)], [0.9, 0.1], [2.0, 3.0], 3).eval()
    file, x = io.BytesIO(), torch.randn(5, 4)
    torch.onnx.export(model, (x,), file, dynamo=True)
    session = runtime.InferenceSession(file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.tensor(found), model(x))


def test_members_take_several_arguments_by_place_and_by_name():
    class Weighted(nn.Linear):
        def forward(self, weight, x):
            return {"logits": super().forward(weight * x)}

    a, b = Weighted(4, 3), Weighted(4, 3)
    model, weight, x = Mixture([a, b]), torch.randn(5, 1), torch.randn(5, 4)
    expected = (a(weight, x)["logits"] + b(weight, x)["logits"]) / 2
    torch.testing.assert_close(model(weight, x), expected)
    torch.testing.assert_close(model(weight=weight, x=x), expected)
    torch.testing.assert_close(model(weight, x=x), expected)

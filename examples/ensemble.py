"""An ensemble from noise: random embeddings, each a model, without training each.

The conditioner draws an embedding at every call, so training fits a distribution of models (after
D. Krueger et al., "Bayesian hypernetworks", 2017). Predictions are averaged over draws. It is
compared with one ordinary model, and with as many models, trained one by one, as it has draws.

    python examples/ensemble.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparsehyper import HyperNetwork, Noise, Sparse


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def fit(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """Train a model on all samples, in place."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def averaged(models: list[nn.Module], x: Tensor) -> Tensor:
    """The mean of the models' probabilities ``[n, 10]``."""
    return torch.stack([model(x).softmax(1) for model in models]).mean(0)


def main(images: int = 100, steps: int = 1000, draws: int = 20) -> dict[str, tuple[float, float]]:
    """Returns accuracy and negative log-likelihood of each method on noisy test images."""
    torch.manual_seed(0)
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = x.float() / 16
    noisy = x[images:] + 0.3 * torch.randn(len(x) - images, 64)
    hnet = HyperNetwork(network(), Sparse(), Noise(32), base="zeros")
    fit(hnet, x[:images], y[:images], steps)
    one = network()
    fit(one, x[:images], y[:images], steps)
    many = [network() for _ in range(draws)]
    for model in many:
        fit(model, x[:images], y[:images], steps)

    found = {}
    methods = {
        f"hypernetwork, {draws} draws": [hnet.materialize() for _ in range(draws)],
        "hypernetwork, one draw": [hnet.materialize()],
        "one model": [one],
        f"{draws} models": many,
    }
    for method, models in methods.items():
        probabilities = averaged(models, noisy)
        accuracy = (probabilities.argmax(1) == y[images:]).float().mean().item()
        unlikely = nn.functional.nll_loss(probabilities.log(), y[images:]).item()
        found[method] = accuracy, unlikely
        print(f"{method}: {accuracy:.1%} right, negative log-likelihood {unlikely:.3f}")
    return found


if __name__ == "__main__":
    main()

"""A continuum of hyperparameters: one hypernetwork knows the best model at every weight decay.

The hyperparameter λ is a feature of the task. Training draws another λ at every step. Afterwards
any λ gives a model at once, so it is chosen on validation data without training again. (After J.
Lorraine and D. Duvenaud, "Stochastic hyperparameter optimization through hypernetworks", 2018.)

    python examples/hyperparameters.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparsehyper import HyperNetwork, Sparse, TaskFeatures

LOWEST, HIGHEST = -5.0, 0.0  # of log10 λ


def penalised(logits: Tensor, y: Tensor, tensors: list[Tensor], log_decay: float) -> Tensor:
    """Cross entropy + λ · the sum of the squares of all parameters."""
    squares = sum(tensor.square().sum() for tensor in tensors)
    return nn.functional.cross_entropy(logits, y) + 10**log_decay * squares


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def trained_alone(x: Tensor, y: Tensor, log_decay: float, steps: int) -> nn.Module:
    """A model for one λ."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = penalised(model(x), y, list(model.parameters()), log_decay)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def main(images: int = 60, steps: int = 1500, alone_steps: int = 300) -> dict[str, float]:
    """Returns the chosen log10 λ, and validation losses there and of models trained alone."""
    torch.manual_seed(0)
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = x.float() / 16 + 0.3 * torch.randn(x.shape)
    train_x, train_y, val_x, val_y = x[:images], y[:images], x[images:], y[images:]

    def features(log_decay: Tensor | float) -> Tensor:
        middle, half = (LOWEST + HIGHEST) / 2, (HIGHEST - LOWEST) / 2
        return torch.as_tensor([(log_decay - middle) / half])

    ends = {"lowest": features(LOWEST), "highest": features(HIGHEST)}
    target = network()
    hnet = HyperNetwork(target, Sparse(), TaskFeatures(ends, dim=32))
    optimizer = torch.optim.Adam(hnet.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        log_decay = LOWEST + (HIGHEST - LOWEST) * torch.rand(()).item()
        tensors = hnet.generate(hnet.conditioner.of(features(log_decay)))
        logits = torch.func.functional_call(target, tensors, (train_x,))
        loss = penalised(logits, train_y, list(tensors.values()), log_decay)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    hnet.eval()

    def validation_loss(log_decay: float) -> float:
        with torch.no_grad():
            logits = hnet(val_x, task=hnet.conditioner.of(features(log_decay)))
        return nn.functional.cross_entropy(logits, val_y).item()

    tried = torch.linspace(LOWEST, HIGHEST, 101).tolist()
    losses = [validation_loss(log_decay) for log_decay in tried]
    best = tried[min(range(101), key=losses.__getitem__)]
    found = {"chosen log10 of the decay": best, "loss there, hypernetwork": min(losses)}
    for log_decay in (LOWEST, best, HIGHEST):
        model = trained_alone(train_x, train_y, log_decay, alone_steps)
        loss = nn.functional.cross_entropy(model(val_x), val_y).item()
        found[f"loss at {log_decay:.2f}, trained alone"] = loss
    for what, value in found.items():
        print(f"{what}: {value:.3f}")
    return found


if __name__ == "__main__":
    main()

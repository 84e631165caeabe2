"""A module of your own, for five tasks at once: which of two digits is it?

The module is a small transformer that reads the eight rows of an image. One hypernetwork makes its
parameters for each task, and learns a task that it has never seen from ten images.

    python examples/own_module.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding, fit_embedding


class RowReader(nn.Module):
    """Any module will do: nothing in it knows of hypernetworks."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(torch.randn(8, width) / width**0.5)
        self.layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.read = nn.Linear(width, 2)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits ``[batch, 2]`` of images ``[batch, 8, 8]``."""
        return self.read(self.layer(self.embed(rows) + self.place).mean(1))


def pairs() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The digits 0 or 1, 2 or 3, …: images and labels to train on, and to test on."""
    images, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = images.float().view(-1, 8, 8) / 16
    tasks = []
    for pair in range(5):
        x, y = images[digits // 2 == pair], digits[digits // 2 == pair] % 2
        tasks.append((x[:200], y[:200], x[200:], y[200:]))
    return tasks


def main(steps: int = 600, restarts: int = 4) -> dict[str, float]:
    """Train on four tasks, fit the fifth; returns test accuracies."""
    torch.manual_seed(0)
    *known, new = pairs()
    names = ["0 or 1", "2 or 3", "4 or 5", "6 or 7"]
    hnet = HyperNetwork(RowReader(), Sparse(), TaskEmbedding(names, dim=32))
    optimizer = torch.optim.Adam(hnet.parameters(), lr=2e-3)
    for step in range(steps):
        x, y, _, _ = known[step % 4]
        some = torch.randint(len(x), (50,))
        loss = nn.functional.cross_entropy(hnet(x[some], task=step % 4), y[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    hnet.eval()
    accuracy = {}
    for name, (_, _, x, y) in zip(names, known, strict=True):
        model = hnet.materialize(name)  # an ordinary RowReader
        accuracy[name] = (model(x).argmax(1) == y).float().mean().item()

    x, y, test_x, test_y = new
    few = torch.cat([(y == c).nonzero()[:5, 0] for c in (0, 1)])  # five images of each digit
    fit_embedding(hnet, "8 or 9", (x[few], y[few]), restarts=restarts)
    predicted = hnet(test_x, task="8 or 9").argmax(1)
    accuracy["8 or 9, from ten images"] = (predicted == test_y).float().mean().item()
    for name, value in accuracy.items():
        print(f"{name}: {value:.1%}")
    return accuracy


if __name__ == "__main__":
    main()

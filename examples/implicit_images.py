"""Images as functions: one hypernetwork makes a network from place to brightness for each image.

The target is a SIREN (V. Sitzmann et al., "Implicit neural representations with periodic activation
functions", NeurIPS 2020). An image is an embedding, so images can be interpolated, drawn at any
size, and found again from some of their pixels.

    python examples/implicit_images.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding, fit_embedding


class Siren(nn.Module):
    """Brightness ``[n, 1]`` at places ``[n, 2]`` in [-1, 1]²."""

    def __init__(self, width: int = 32, frequency: float = 2.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, width), nn.Linear(width, width)
        self.last, self.frequency = nn.Linear(width, 1), frequency

    def forward(self, place: Tensor) -> Tensor:
        """Two layers of sines and a linear one."""
        hidden = torch.sin(self.frequency * self.first(place))
        return self.last(torch.sin(self.frequency * self.second(hidden)))


def grid(side: int) -> Tensor:
    """The places of the pixels of a square image, row by row: ``[side², 2]``."""
    line = (torch.arange(side) + 0.5) * 2 / side - 1
    return torch.cartesian_prod(line, line)


def decibels(error: Tensor) -> float:
    """The signal-to-noise ratio of a mean squared error, for brightness in [0, 1]."""
    return -10 * error.log10().item()


def drawn(values: Tensor) -> str:
    """A square image in characters."""
    side = int(len(values) ** 0.5)
    shades = " .:-=+*#%@"
    levels = (values.clamp(0, 0.999) * len(shades)).long().view(side, side)
    return "\n".join("".join(shades[level] * 2 for level in row) for row in levels)


def main(images: int = 200, steps: int = 1200) -> dict[str, float]:
    """Returns signal-to-noise ratios in decibels."""
    torch.manual_seed(0)
    pixels = torch.tensor(load_digits().data).float() / 16
    known, new = pixels[:images], pixels[images]
    place = grid(8)
    hnet = HyperNetwork(Siren(), Sparse(), TaskEmbedding(images, dim=64, similarity=0.9))
    optimizer = torch.optim.Adam(hnet.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        some = torch.randperm(images)[:10]
        values = hnet(place.repeat(10, 1), task=some.repeat_interleave(64))
        loss = (values - known[some].view(-1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    hnet.eval()
    with torch.no_grad():
        every = torch.stack([hnet(place, task=i)[:, 0] for i in range(images)])
        between = (hnet.embedding(0) + hnet.embedding(10)) / 2  # two zeros, in different hands
        print(drawn(hnet(grid(16), task=between)[:, 0]))  # at twice the size

    seen = torch.arange(64) % 3 != 0  # two pixels of three
    fit_embedding(
        hnet,
        "new",
        (place[seen], new[seen][:, None]),
        restarts=8,
        steps=100,
    )
    hidden = (hnet(place[~seen], task="new")[:, 0] - new[~seen]).square().mean()
    found = {
        "known images": decibels((every - known).square().mean()),
        "a new image, its hidden third": decibels(hidden.detach()),
        "the same by the mean image": decibels((known.mean(0) - new)[~seen].square().mean()),
    }
    for what, value in found.items():
        print(f"{what}: {value:.1f} dB")
    return found


if __name__ == "__main__":
    main()

"""Your own folders of images, ``FOLDER/TASK/CLASS/*.png``, in a Python loop of your own.

The last task is held back and then learned from its images. Without a folder it writes one, of
handwritten digits. (Without Python, the command line does the same: see the tutorial.)

    python examples/own_folders.py FOLDER
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding, adapt_task


def write_digits(folder: Path, most: int) -> None:
    """Five tasks of two digits each."""
    for i, (pixels, digit) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        place = folder / f"{digit // 2 * 2} or {digit // 2 * 2 + 1}" / f"digit {digit}"
        place.mkdir(parents=True, exist_ok=True)
        if i < most:
            Image.fromarray((pixels.reshape(8, 8) * 15.9).astype("uint8")).save(place / f"{i}.png")


def read_task(folder: Path) -> tuple[Tensor, Tensor]:
    """Images ``[n, 1, height, width]`` in [0, 1] and labels ``[n]`` of one task."""
    images, labels = [], []
    for label, place in enumerate(sorted(folder.iterdir())):
        for file in sorted(place.glob("*.png")):
            images.append(np.asarray(Image.open(file).convert("L"), dtype=np.float32) / 255)
            labels.append(label)
    return torch.tensor(np.stack(images))[:, None], torch.tensor(labels)


def halves(x: Tensor, y: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Samples to train on and to test on."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    first, second = order[: len(x) // 2], order[len(x) // 2 :]
    return (x[first], y[first]), (x[second], y[second])


def main(
    folder: Path | None = None, epochs: int = 20, most: int = 1797, seconds: float = 5
) -> dict[str, float]:
    """Train on all tasks but the last, learn that one; returns test accuracies."""
    torch.manual_seed(0)
    if folder is None:
        folder = Path(tempfile.mkdtemp())
        write_digits(folder, most)
    data = {place.name: halves(*read_task(place)) for place in sorted(folder.iterdir())}
    *names, last = data
    classes = max(int(train[1].max()) + 1 for train, _ in data.values())
    _, channels, height, width = data[last][0][0].shape
    module = nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * (height // 2) * (width // 2), classes)),
    )
    hnet = HyperNetwork(module, Sparse(), TaskEmbedding(names, dim=64))
    trained = [data[name][0] for name in names]
    x, y = (torch.cat(parts) for parts in zip(*trained, strict=True))
    task = torch.cat([torch.full((len(y),), i) for i, (_, y) in enumerate(trained)])
    optimizer = torch.optim.Adam(hnet.parameters(), lr=2e-3)
    for _ in range(epochs):
        for some in DataLoader(TensorDataset(x, y, task), batch_size=100, shuffle=True):
            loss = nn.functional.cross_entropy(hnet(some[0], task=some[2]), some[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    hnet.eval()
    accuracy = {}
    for name in names:
        test_x, test_y = data[name][1]
        accuracy[name] = (hnet(test_x, task=name).argmax(1) == test_y).float().mean().item()
    adapted = adapt_task(hnet, last, data[last][0], seconds=seconds)  # .model is a module
    print(f"{last}: {adapted.why}")
    test_x, test_y = data[last][1]
    accuracy[f"{last}, new"] = (adapted.model(test_x).argmax(1) == test_y).float().mean().item()
    for name, value in accuracy.items():
        print(f"{name}: {value:.1%}")
    return accuracy


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)

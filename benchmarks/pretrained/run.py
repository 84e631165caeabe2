"""Pretrained hypernetworks for Hugging Face's hub: pairs of digits, or of pieces of clothing.

    python benchmarks/pretrained/run.py --out pretrained digits mnist fashion_mnist

Each is trained on all 28 pairs of the first eight classes, and measured on the test images of these
pairs, and of the pair of the last two, which it learns from ten images of each. It becomes a
directory below 3 MB, as `save_pretrained` writes it, with the figures in the model card. Loaded as
anyone would load it, without a target, it must give the same outputs to the bit.

`--push OWNER` uploads each as OWNER/sparsehyper-NAME too. MNIST and Fashion-MNIST are read from the
folder SPARSEHYPER_DATA, as by the command line.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sparsehyper import HyperNetwork, adapt_task
from sparsehyper._util.files import check_absent
from sparsehyper.lab.data import Split, TaskInfo, images_of, load_source, make_tasks
from sparsehyper.lab.runs import DataConfig, Experiment, load_run, run_experiment
from sparsehyper.training import TrainConfig

KNOWN = tuple(itertools.combinations(range(8), 2))
NEW = (8, 9)
FEW = 10  # images of each class of the new pair
MOST_BYTES = 3_000_000


class Plan(NamedTuple):
    """What is trained on a data set, for how many updates."""

    target: str
    steps: int


PLANS = {
    "digits": Plan("mlp:128-64", 2000),
    "mnist": Plan("cnn:16-32", 800),
    "fashion_mnist": Plan("cnn:16-32", 800),
}


def make(
    name: str, out: Path, *, steps: int | None = None, seconds: float = 5.0
) -> tuple[HyperNetwork, dict[str, object]]:
    """Train a hypernetwork, save it, and check what was saved.

    Args:
        name: a data set of ``PLANS``.
        out: the directory to write; must be new.
        steps: number of updates; None for that of the plan.
        seconds: time to learn the new pair, about.

    Returns:
        The hypernetwork, and the figures in its model card.

    Raises:
        RuntimeError: what was saved is too large, or is not what was trained.
    """
    check_absent("out", out)
    plan = PLANS[name]
    steps = steps or plan.steps
    experiment = Experiment(
        DataConfig(name, "split:" + ",".join(f"{a}-{b}" for a, b in KNOWN)),
        TrainConfig(steps=steps, warmup=min(100, steps // 10), eval_every=max(1, steps // 4)),
        target=plan.target,
        latent_dim=64,
        tasks_per_batch=4,
    )
    source = load_source(name)
    pair = make_tasks(source, Split((NEW,)))
    x, y = images_of(pair.train, 0, pair.train.counts[0])
    few = torch.cat([(y == label).nonzero()[:FEW, 0] for label in range(len(NEW))])
    test_x, test_y = images_of(pair.test, 0, pair.test.counts[0])
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        accuracies = run_experiment(experiment, run)["test"]["accuracies"]
        loaded = load_run(run)
        hnet = loaded.hypernetwork()
        hnet.save(Path(folder, "model"), frozen="store")
        copy = HyperNetwork.from_pretrained(Path(folder, "model"))
    learned = adapt_task(copy, pair.names[0], (x[few], y[few]), seconds=seconds).model
    with torch.no_grad():
        right = (learned(test_x).argmax(1) == test_y).double().mean().item()
    mean = sum(accuracies.values()) / len(accuracies)
    figures: dict[str, object] = {
        "input": _input(loaded.tasks),
        "outputs of task a-b": "logits of the classes number a and number b",
        "classes, from number 0": ", ".join(source.classes),
        f"test accuracy, mean of {len(accuracies)} tasks": f"{mean:.1%}",
        "test accuracy, worst of them": f"{min(accuracies.values()):.1%}",
        f"test accuracy on new task {pair.names[0]}, from {len(few)} images": f"{right:.1%}",
        "made by": f"`benchmarks/pretrained/run.py {name}`, {steps:,} updates, one seed",
    }
    hnet.save_pretrained(out, figures=figures)
    _check(hnet, out, test_x)
    return hnet, figures


def _input(tasks: TaskInfo) -> str:
    channels, height, width = tasks.image_shape
    (mean,), (std,) = tasks.mean, tasks.std
    return f"float32 [batch, {channels}, {height}, {width}], (pixel / 255 - {mean:.6f}) / {std:.6f}"


def _check(hnet: HyperNetwork, directory: Path, x: Tensor) -> None:
    """Raise ``RuntimeError`` unless a directory is small and holds the hypernetwork."""
    size = sum(file.stat().st_size for file in directory.iterdir())
    if size > MOST_BYTES:
        raise RuntimeError(f"{directory} has {size:,} bytes; at most {MOST_BYTES:,} are allowed")
    loaded = HyperNetwork.from_pretrained(directory)
    with torch.no_grad():
        for task in hnet.task_names:
            if not torch.equal(loaded(x, task=task), hnet.eval()(x, task=task)):
                raise RuntimeError(f"{directory} gives other outputs for task {task!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=PLANS)
    parser.add_argument("--out", type=Path, required=True, help="folder for a directory of each")
    parser.add_argument("--push", metavar="OWNER", help="also upload them to the hub")
    given = parser.parse_args()
    for name in given.names:
        hnet, figures = make(name, given.out / name)
        print(name, *(f"{what}: {value}" for what, value in figures.items()), sep="\n  ")
        if given.push is not None:
            print(hnet.push_to_hub(f"{given.push}/sparsehyper-{name}", figures=figures))


if __name__ == "__main__":
    main()

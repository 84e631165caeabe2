"""Continual learning on MNIST: tasks one after another, each model made from its task's name.

    python benchmarks/continual/run.py --out docs/results/continual    # needs SPARSEHYPER_DATA

**Question.** How much is forgotten with the output regulariser, how much without, and how far is it
from learning all tasks at once? Is a sparse generator ahead of a chunked one?

**Tasks.** *Split*: five pairs of digits. *Permuted*: ten fixed orders of the pixels, ten digits
each. The task of a test image is known (task-incremental learning).

**Methods.** The target has one hidden layer of 100 ReLUs. Generators have 4 numbers for each of its
N parameters, no base, and embeddings of 64 numbers. *Joint* learns from all tasks in turn, with as
many steps in all. *Fine-tuned* learns one after another without a penalty. *One network* is the
target alone, fine-tuned. Adam with batches of 256, its learning rate 0.002 falling to 0 for each
task.

**Search.** β by the mean accuracy on validation images (a tenth of the training images) after five
tasks, of a seed of its own.

**Variants** of the sparse one, of the same seeds: a penalty on one earlier task a step; embeddings
of earlier tasks fixed; changes taken after the step that the task's own loss would make. The last
two are as in J. von Oswald et al., "Continual learning with hypernetworks" (ICLR 2020).

Accuracy on test images after the last task, mean over tasks, and how much of it was lost since each
task was learned; 95% intervals of Student's t over seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sparsehyper import Chunked, HyperNetwork, OutputRegulariser, Sparse, TaskEmbedding
from sparsehyper.lab.data import Permuted, Split, TaskSet, TaskSplit, load_source, make_tasks

HIDDEN, DIM, BUDGET, BATCH, LR = 100, 64, 4, 256, 2e-3
STEPS = {"split": 100, "permuted": 200}  # a task
BETAS = (0.01, 0.1, 1.0)
SEARCH_SEED = 100
KINDS = ("sparse", "chunked")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, by number of seeds

Ends = dict[str, Any]  # accuracies of all tasks at the "end", and as each was "learned"


@dataclass(frozen=True)
class Way:
    """How the tasks are learned one after another."""

    beta: float = 0.0
    tasks_per_step: int | None = None
    fixed: bool = False  # embeddings of earlier tasks
    ahead: bool = False  # the penalty is taken after the step of the task's own loss


def make_data(name: str, seed: int) -> TaskSet:
    source = load_source("mnist")
    maker = Split(2) if name == "split" else Permuted(10, seed=seed)
    return make_tasks(source, maker, seed=seed)


def network(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)
    )


def hypernetwork(kind: str, tasks: TaskSet, seed: int) -> HyperNetwork:
    torch.manual_seed(seed)
    target = network(tasks.n_classes[0])
    numel = sum(parameter.numel() for parameter in target.parameters())
    generator = {"sparse": Sparse(), "chunked": Chunked()}[kind]
    generator = generator.with_budget(BUDGET * numel, DIM, numel)
    conditioner = TaskEmbedding(tasks.names, dim=DIM, seed=seed)
    return HyperNetwork(target, generator, conditioner, base="zeros", seed=seed)


def batch(split: TaskSplit, task: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.randint(split.counts[task], (BATCH,), generator=rng)
    return split.batch(torch.full_like(index, task), index)[:2]


@torch.no_grad()
def accuracy(model: nn.Module, split: TaskSplit, task: int) -> float:
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y, _ in split.batches(task, 2000))
    return right / split.counts[task]


def optimiser(model: nn.Module, steps: int) -> tuple[torch.optim.Adam, object]:
    adam = torch.optim.Adam(model.parameters(), LR)
    return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)


def step_ahead(adam: torch.optim.Adam, regulariser: OutputRegulariser) -> None:
    """Add the gradient of the penalty where the gradients now there would lead."""
    parameters = [p for group in adam.param_groups for p in group["params"]]
    values = [p.detach().clone() for p in parameters]
    gradients = [p.grad.clone() for p in parameters]
    state = copy.deepcopy(adam.state_dict())
    adam.step()
    adam.zero_grad()
    regulariser().backward()
    adam.load_state_dict(state)
    with torch.no_grad():
        for p, value, gradient in zip(parameters, values, gradients, strict=True):
            p.copy_(value)
            p.grad = gradient if p.grad is None else gradient + p.grad


def one_after_another(
    hnet: HyperNetwork, tasks: TaskSet, steps: int, way: Way, seed: int, part: str = "test"
) -> Ends:
    """Accuracy of each task at its end and at the end of all."""
    rng = torch.Generator().manual_seed(seed)
    regulariser = OutputRegulariser(hnet, way.beta, tasks_per_step=way.tasks_per_step, seed=seed)
    table, split, learned = hnet.conditioner.weight, getattr(tasks, part), []
    for task in range(len(tasks.names)):
        adam, schedule = optimiser(hnet, steps)
        earlier = table[:task].detach().clone()
        for _ in range(steps):
            x, y = batch(tasks.train, task, rng)
            loss = F.cross_entropy(hnet(x, task=task), y)
            if way.beta and not way.ahead:
                loss = loss + regulariser()
            adam.zero_grad()
            loss.backward()
            if way.ahead and task:
                step_ahead(adam, regulariser)
            adam.step()
            schedule.step()
            if way.fixed:
                table.data[:task] = earlier
        regulariser.hold(task)
        learned.append(accuracy(hnet.materialize(task), split, task))
    return {"learned": learned, "end": ends(hnet, split)}


def joint(hnet: HyperNetwork, tasks: TaskSet, steps: int, seed: int) -> Ends:
    rng, count = torch.Generator().manual_seed(seed), len(tasks.names)
    adam, schedule = optimiser(hnet, steps * count)
    for step in range(steps * count):
        x, y = batch(tasks.train, step % count, rng)
        adam.zero_grad()
        F.cross_entropy(hnet(x, task=step % count), y).backward()
        adam.step()
        schedule.step()
    return {"end": ends(hnet, tasks.test)}


def ends(hnet: HyperNetwork, split: TaskSplit) -> list[float]:
    return [accuracy(hnet.materialize(task), split, task) for task in range(len(hnet.task_names))]


def one_network(tasks: TaskSet, steps: int, seed: int) -> Ends:
    torch.manual_seed(seed)
    rng, model, learned = torch.Generator().manual_seed(seed), network(tasks.n_classes[0]), []
    for task in range(len(tasks.names)):
        adam, schedule = optimiser(model, steps)
        for _ in range(steps):
            x, y = batch(tasks.train, task, rng)
            adam.zero_grad()
            F.cross_entropy(model(x), y).backward()
            adam.step()
            schedule.step()
        learned.append(accuracy(model, tasks.test, task))
    end = [accuracy(model, tasks.test, task) for task in range(len(tasks.names))]
    return {"learned": learned, "end": end}


def search(name: str, kind: str) -> dict[str, float]:
    """Mean validation accuracy at the end, for each β."""
    tasks = make_data(name, SEARCH_SEED)
    tasks = tasks.select(tasks.names[:5])
    found = {}
    for beta in BETAS:
        hnet = hypernetwork(kind, tasks, SEARCH_SEED)
        way = Way(beta)
        end = one_after_another(hnet, tasks, STEPS[name], way, SEARCH_SEED, "val")["end"]
        found[str(beta)] = round(float(np.mean(end)), 4)
    return found


def methods(betas: dict[str, float]) -> dict[str, Callable[[TaskSet, int, int], Ends]]:
    """Every method, as a function of tasks, steps a task and seed."""

    def in_order(kind: str, way: Way) -> Callable[[TaskSet, int, int], Ends]:
        return lambda tasks, steps, seed: one_after_another(
            hypernetwork(kind, tasks, seed), tasks, steps, way, seed
        )

    def together(kind: str) -> Callable[[TaskSet, int, int], Ends]:
        return lambda tasks, steps, seed: joint(hypernetwork(kind, tasks, seed), tasks, steps, seed)

    beta = betas["sparse"]
    return {
        **{f"{kind}, regularised": in_order(kind, Way(betas[kind])) for kind in KINDS},
        **{f"{kind}, fine-tuned": in_order(kind, Way()) for kind in KINDS},
        **{f"{kind}, joint": together(kind) for kind in KINDS},
        "one network, fine-tuned": one_network,
        "variant: one task a step": in_order("sparse", Way(beta, tasks_per_step=1)),
        "variant: embeddings fixed": in_order("sparse", Way(beta, fixed=True)),
        "variant: look-ahead": in_order("sparse", Way(beta, fixed=True, ahead=True)),
    }


def interval(values: list[float]) -> str:
    """Mean and half width of the 95% interval, in percent."""
    half = T_95.get(len(values), np.nan) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{100 * np.mean(values):.2f} ± {100 * half:.2f}"


def page(results: dict) -> str:
    lines = [
        "# Tasks one after another\n",
        "Plan, methods and data: `benchmarks/continual/run.py`.",
    ]
    for name, found in results.items():
        count = len(next(iter(found["scores"].values())))
        lines += [
            f"\n## {name}\n",
            f"Test accuracy in percent, {count} seeds, {STEPS[name]} steps a ",
        ]
        lines[-1] += f"task; β by validation accuracy: `{json.dumps(found['search'])}`\n"
        lines += ["| method | at the end | when learned | lost | seconds |", "|---|" + "---:|" * 4]
        for method, runs in found["scores"].items():
            end = [float(np.mean(run["end"])) for run in runs]
            cells = [interval(end), "", "", f"{np.mean([run['seconds'] for run in runs]):.0f}"]
            if "learned" in runs[0]:
                learned = [float(np.mean(run["learned"])) for run in runs]
                cells[1] = interval(learned)
                cells[2] = interval([a - b for a, b in zip(learned, end, strict=True)])
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", action="append", choices=list(STEPS))
    parser.add_argument("--steps", type=int, help="for each task, in the search too")
    options = parser.parse_args()
    if options.steps:
        STEPS.update(dict.fromkeys(STEPS, options.steps))
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.json"  # what it holds is not measured again
    results = json.loads(file.read_text()) if file.exists() else {}

    def keep() -> None:
        file.write_text(json.dumps(results, indent=1) + "\n")

    for name in options.tasks or STEPS:
        found = results.setdefault(name, {"search": {}, "scores": {}})
        for kind in KINDS:
            if kind not in found["search"]:
                found["search"][kind] = search(name, kind)
                keep()
        betas = {kind: float(max(of, key=of.__getitem__)) for kind, of in found["search"].items()}
        for seed in range(options.seeds):
            tasks = make_data(name, seed)
            for method, run in methods(betas).items():
                runs = found["scores"].setdefault(method, [])
                if len(runs) == seed:
                    began = time.process_time()
                    runs.append(run(tasks, STEPS[name], seed))
                    runs[-1]["seconds"] = time.process_time() - began
                    print(name, seed, method, f"{np.mean(runs[-1]['end']):.2%}", flush=True)
                    keep()
    (options.out / "results.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()

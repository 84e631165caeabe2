"""New tasks from an embedding alone: a hypernetwork learns a task by fitting one vector.

    z* = argmin_z  mean loss of target(x; base + scale ⊙ G(normalise(z))) over the task's samples

With a head in closed form, the loss of each sample is that by the head of all other samples.
Everything but z stays bit-identical. All tasks and all restarts are fitted at once by L-BFGS: a
step generates many models in one batch, and runs models with equally many samples together.

Source: fitting an embedding under a frozen hypernetwork, and embeddings that are a softmax mixture
of the known ones, as in F. Cubélier, "Sparse hypernetworks for multitasking" (Liège, 2022).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from sparsehyper._util.checks import MOST_REPEATS, check_choice, check_integer
from sparsehyper._util.modes import frozen
from sparsehyper.adaptation.fitter import Fitter, keep
from sparsehyper.adaptation.samples import (
    Loss,
    Samples,
    TaskSamples,
    check_named,
    gather,
    joined,
    with_gradients,
)
from sparsehyper.hypernetwork import HyperNetwork

EMBEDDING_INITS = ("mean", "nearest", "mixture", "random", "own")
SPACES = ("free", "mixture")


@dataclass(frozen=True)
class Fit:
    """Result of `fit_embedding` for one task.

    Attributes:
        name: task name.
        embedding: the best embedding, ``[latent_dim]``; with unit second moment, unless it is a
            mixture.
        loss: its mean loss, on the validation samples if there are any.
        embeddings: embeddings of all restarts, ``[restarts, latent_dim]``.
        losses: mean losses of all restarts.
        statistics: batch-norm statistics of all restarts, ``[restarts, *shape]`` each.
        steps: number of evaluations of the loss.
        seconds: duration of the fit of all tasks together.
    """

    name: str
    embedding: Tensor = field(repr=False)
    loss: float
    embeddings: Tensor = field(repr=False)
    losses: tuple[float, ...]
    statistics: tuple[Tensor, ...] = field(repr=False)
    steps: int
    seconds: float


def fit_embedding(
    hnet: HyperNetwork,
    name: str,
    samples: Samples,
    *,
    validation: Samples | None = None,
    init: str | Tensor | None = None,
    restarts: int = 1,
    space: str = "free",
    n_classes: int | None = None,
    loss: Loss | None = None,
    overwrite: bool = False,
    steps: int = 25,
    batch_size: int = 1024,
    seed: int = 0,
) -> Fit:
    """Fit the embedding of one new task and add the task.

    The arguments are those of `fit_embeddings`, with ``validation`` and ``n_classes`` for this task
    alone.

    >>> import torch
    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> module = torch.nn.Linear(5, 2)
    >>> hnet = HyperNetwork(module, Sparse(), TaskEmbedding(["shoes", "bags"], dim=8))
    >>> x = torch.randn(20, 5)
    >>> fit = fit_embedding(hnet, "hats", (x, (x[:, 0] > 0).long()), steps=20)
    >>> hnet.task_names, fit.embedding.shape
    (('shoes', 'bags', 'hats'), torch.Size([8]))
    """
    return fit_embeddings(
        hnet,
        {name: samples},
        validation=None if validation is None else {name: validation},
        init=init,
        restarts=restarts,
        space=space,
        n_classes=n_classes,
        loss=loss,
        overwrite=overwrite,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )[name]


@with_gradients()
def fit_embeddings(
    hnet: HyperNetwork,
    tasks: Mapping[str, Samples],
    *,
    validation: Mapping[str, Samples] | None = None,
    init: str | Tensor | None = None,
    restarts: int = 1,
    space: str = "free",
    n_classes: int | Mapping[str, int] | None = None,
    loss: Loss | None = None,
    overwrite: bool = False,
    steps: int = 25,
    batch_size: int = 1024,
    seed: int = 0,
) -> dict[str, Fit]:
    """Fit the embeddings of new tasks together, and add the tasks.

    With `TaskFeatures`, the tasks must have been added by their features, and their embeddings are
    refined. Nothing else in the hypernetwork changes, including its mode. Dropout is off while
    fitting. Batch norms with statistics per task use those of the batch, as in training; a new
    task's statistics are then estimated from all its samples. Other statistics are used as they
    are.

    Args:
        hnet: hypernetwork that was trained on other tasks.
        tasks: samples of each new task: inputs, which are whatever the target takes, and labels;
            or batches of them.
        validation: samples of each new task to choose among restarts by; by default the samples
            that it is fitted to.
        init: initial embedding: that of the ``"nearest"`` known task (with the lowest loss on up to
            256 samples; the worse ones are left out after a part of them), the ``"mean"`` of the
            known embeddings, a ``"mixture"`` of them (softmax of their negative losses),
            ``"random"``, or a vector ``[latent_dim]``; with `TaskFeatures` also the task's
            ``"own"``. None for ``"own"`` if there is one, and otherwise for ``"nearest"``.
        restarts: number of embeddings to fit for each task. With ``"nearest"`` they start from as
            many of the nearest known tasks as there are; all others but the first start at random.
        space: ``"free"``, any vector; or ``"mixture"``, a softmax mixture of the known embeddings,
            whose logits are fitted. The logits start at 0 (the mean), whatever ``init`` is.
        n_classes: number of classes of all new tasks, or of each by name; by default the largest
            label plus one. Outputs beyond it are ignored. For class numbers and the default loss
            only.
        loss: function that returns the loss of each sample; by default the cross entropy of logits
            ``[n, outputs]``, or for labels that are floating-point numbers of the outputs' shape
            the mean squared error. PyTorch's own, such as ``nn.MSELoss()``, are used without their
            mean.
        overwrite: whether ``tasks`` may name known tasks, which are then learned anew, as if they
            were not known.
        steps: number of evaluations of loss and gradient by L-BFGS, including the first.
        batch_size: largest number of samples that an embedding is fitted to. They are drawn once,
            balanced over classes as far as there are samples, and every step uses all of them.
        seed: seed of random starts and of the choice of samples.

    Returns:
        One `Fit` for each task, by name.

    Raises:
        ValueError: a name is taken without ``overwrite``, there are no samples, labels are neither
            class numbers nor numbers of the outputs' shape, or class numbers all the same, a task
            has more classes than the target has outputs, or a loss is not finite. The hypernetwork
            is then unchanged.
        KeyError: with `TaskFeatures`, a task that was not added.
        TypeError: the hypernetwork's conditioner is not a `TaskEmbedding`, `TaskFeatures` or
            `TaskExamples`, or ``tasks`` is not a mapping.
        RuntimeError: called within ``torch.inference_mode()``.
    """
    check_choice("space", space, SPACES)
    check_integer("restarts", restarts, minimum=1, maximum=MOST_REPEATS)
    check_integer("steps", steps, minimum=2)
    check_integer("batch_size", batch_size, minimum=2)
    check_integer("seed", seed, minimum=0)
    described = hnet.conditioner.described
    if init is None:
        init = "own" if described else "nearest"
    if not isinstance(init, Tensor):
        check_choice("init", init, EMBEDDING_INITS if described else EMBEDDING_INITS[:-1])
    wanted, known = gather(hnet, tasks, n_classes, loss, seed, overwrite)
    names = list(tasks)
    wanted.sort(key=lambda task: min(len(task.x), batch_size))  # equal sizes run together
    held = wanted
    if validation is not None:
        check_named("validation", validation)
        if missing := [name for name in names if name not in validation]:
            raise ValueError(f"`validation` has no samples of the new task {missing[0]!r}")
        held = [_held(task, validation[task.name]) for task in wanted]

    started = time.perf_counter()
    fits: dict[str, Fit] = {}
    with frozen(hnet):
        fitter = Fitter(hnet, wanted, held, restarts, known)
        start = fitter.mixtures(seed) if space == "mixture" else fitter.starts(init, seed)
        z, statistics = fitter.fit(start, space, steps, batch_size)
        losses, statistics = fitter.assess(z, statistics)
        for i, task in enumerate(wanted):
            values = tuple(losses[i].tolist())
            if not all(map(math.isfinite, values)):
                raise ValueError(
                    f"the loss of the new task {task.name!r} is not finite, got {values}; look at "
                    "its samples"
                )
            best = values.index(min(values))
            rows = tuple([table[i] for table in statistics])
            fits[task.name] = Fit(task.name, z[i, best], values[best], z[i], values, rows, steps, 0)
    seconds = time.perf_counter() - started
    given = {task.name: task for task in wanted}
    for name in names:
        fit = fits[name]
        best = fit.losses.index(fit.loss)
        kept = [table[best : best + 1] for table in fit.statistics]
        keep(hnet, given[name], fit.embedding, kept)
    return {name: replace(fits[name], seconds=seconds) for name in names}


def _held(task: TaskSamples, samples: Samples) -> TaskSamples:
    """The validation samples of a task."""
    x, y = joined(task.name, samples, task.y.device)
    if task.loss is None and y.is_floating_point() != task.y.is_floating_point():
        raise ValueError(
            f"`validation` of task {task.name!r} must have labels like its samples, "
            f"{task.y.dtype}, got {y.dtype}"
        )
    n_classes = task.n_classes or None
    return TaskSamples.of(task.name, (x, y), y.device, n_classes=n_classes, loss=task.loss)

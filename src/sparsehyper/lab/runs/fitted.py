"""What is fitted to a new task of a hypernetwork, as tensors for a file."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from sparsehyper._util.last_layer import trim
from sparsehyper.hypernetwork import HyperNetwork


def fitted_tensors(model: HyperNetwork, task: int, n_classes: int) -> dict[str, Tensor]:
    """The tensors that were fitted to a task, by their names in a file.

    They are the embedding, the batch-norm statistics, and of a head in closed form the weights and
    biases of the task's own classes.
    """
    norms = model.target.statistics
    rows = zip(norms.names, norms.row(model.target.module, task), strict=True)
    tensors = {"embedding": model.known_embeddings([task])[0]}
    tensors |= {f"statistics/{name}": row for name, row in rows}
    if model.head is not None:
        tensors["head/weight"] = model.head.weight[task, :n_classes]
        tensors["head/bias"] = model.head.bias[task, :n_classes]
    return tensors


def add_fitted(model: HyperNetwork, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Add a task to a hypernetwork; the inverse of `fitted_tensors`."""
    number = model.add_task(name, tensors["embedding"])
    norms, module = model.target.statistics, model.target.module
    rows = [tensors[f"statistics/{statistic}"][None] for statistic in norms.names]
    norms.set_rows(module, [number], rows)
    if model.head is not None:
        model.head.set(number, tensors["head/weight"], tensors["head/bias"])


def trimmed_head(model: HyperNetwork, module: nn.Module, n_classes: int) -> nn.Module:
    """Reduce the head in closed form of a materialised module, if any, to the task's own classes.

    Until then it has as many outputs as the task with the most classes.
    """
    if model.head is not None:
        layer = module.get_submodule(model.head_layer)
        assert isinstance(layer, nn.Linear)
        trim(layer, n_classes)
    return module


def fitted_like(model: HyperNetwork, n_classes: int) -> dict[str, Tensor]:
    """Tensors like those of `fitted_tensors`, of a task with so many classes."""
    like = fitted_tensors(model, 0, 1)
    for name in ("head/weight", "head/bias"):
        if name in like:
            like[name] = like[name].expand(n_classes, *like[name].shape[1:])
    return like


def tuned_like(model: HyperNetwork, n_classes: int) -> dict[str, Tensor]:
    """Tensors like those that may be tuned after an embedding was fitted."""
    like = {f"tuned/{name}": t for name, t in model.materialize(0).state_dict().items()}
    if model.head is not None:
        for name in ("weight", "bias"):
            tensor = like[f"tuned/{model.head_layer}.{name}"][:1]
            like[f"tuned/{model.head_layer}.{name}"] = tensor.expand(n_classes, *tensor.shape[1:])
    return like

"""The sets of tasks and the methods of the fair comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.studies.search import LR, LRS, Space, with_settings
from sparsehyper.lab.studies.trainings import CNN, drawn, training

THESIS_BUDGET = 4.0
EVALUATIONS, PATIENCE = 300, 10  # where a training stops by itself


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Args:
        text: as `parse_method` takes it.
        space: settings that are searched, with the ranges to start from.
        budget: its budget ÷ N; None for its own size. Those in ``AT_EVERY_BUDGET`` have several.
        settings: other settings of its experiment, by path.
    """

    text: str
    space: Space
    budget: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)


_LR: Space = {LR: LRS}
_FEW: Space = {LR: LRS, "latent_dim": (16, 32, 64, 128)}
_BOTH: Space = {**_FEW, "base": ("zeros", "learned"), "similarity": (0.0, 0.9)}
_CHUNKED: Space = {
    **_BOTH,
    "method.layers": (1, 2),
    "method.hidden": (4, 8, 16, 32, 64, 128),
    "method.embedding": (4, 8, 16, 32, 64),
}
# How far ranges may grow.
UNTIL: Space = {
    LR: (1e-5, 1.0),
    "latent_dim": (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    "method.hidden": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    "method.embedding": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
}

_SMALL_CHUNKED = "chunked:hidden=64,embedding=64"


def _but_base(space: Space) -> Space:
    return {path: choices for path, choices in space.items() if path != "base"}


AT_EVERY_BUDGET = SPARSE, CHUNKED = "sparse", "chunked"
THESIS_SPARSE = ("thesis's sparse, uniform", "thesis's sparse, local")
THESIS_CHUNKED = "thesis's chunked"
FRAME = ("experts", "shared trunk")
# The default generator, about 4 N, of which no units share a weight; with a base it is the default
# of the library.
UNSHARED = "sparse, one unit a weight"
UNSHARED_BASED = f"{UNSHARED} and a base"
_LEARNED = {"base": "learned"}
VARIANTS = {
    UNSHARED_BASED: Method("sparse", _LR, None, _LEARNED),
    **{
        f"sparse, {share} units a weight and a base": Method(
            f"sparse:share={share}", _LR, None, _LEARNED
        )
        for share in (4, 16, 64)
    },
    "sparse, embeddings of 4": Method("sparse", _LR, THESIS_BUDGET, {"latent_dim": 4}),
    "sparse, weight decay 0.1": Method(
        "sparse",
        _LR,
        THESIS_BUDGET,
        {"training.optimizer": "adamw", "training.weight_decay": 0.1},
    ),
}
# N parameters in a base that all tasks share, and an eighth of N in the generator.
BASED = SPARSE_BASED, CHUNKED_BASED = "sparse and a base", "chunked and a base"
BASED_BUDGET = 1.125
# The same base, and about three times N in the generator.
LARGER_BASED = "sparse and a base, 4 N", "chunked and a base, 4 N"
METHODS: dict[str, Method] = {
    SPARSE: Method("sparse", _BOTH),
    CHUNKED: Method(_SMALL_CHUNKED, _CHUNKED),
    THESIS_SPARSE[0]: Method("sparse:topology=uniform", _FEW),
    THESIS_SPARSE[1]: Method("sparse:topology=local", _FEW),
    THESIS_CHUNKED: Method("chunked", _FEW, THESIS_BUDGET),
    "experts": Method("experts", _LR),
    "shared trunk": Method("shared_trunk", _LR),
    **VARIANTS,
    SPARSE_BASED: Method("sparse", _but_base(_BOTH), BASED_BUDGET, _LEARNED),
    CHUNKED_BASED: Method(_SMALL_CHUNKED, _but_base(_CHUNKED), BASED_BUDGET, _LEARNED),
    LARGER_BASED[0]: Method("sparse", _but_base(_BOTH), THESIS_BUDGET, _LEARNED),
    LARGER_BASED[1]: Method(_SMALL_CHUNKED, _but_base(_CHUNKED), THESIS_BUDGET, _LEARNED),
    UNSHARED: Method("sparse", _LR),
}
USUAL = tuple(name for name in METHODS if name not in (*VARIANTS, *BASED, *LARGER_BASED, UNSHARED))


@dataclass(frozen=True)
class FreshTasks:
    """A set of tasks that are drawn anew for every seed, as is the split of the images.

    Args:
        source: as in `DataConfig`.
        tasks: as `drawn` takes them.
        target: as `build_target` takes it.
        steps: number of updates.
        tasks_per_batch: tasks in a batch.
        images: images of each task in a batch.
        methods: methods to compare, of `METHODS`.
        norm_stats: as in `Experiment`.
    """

    source: str
    tasks: str
    target: str = "mlp:100-100"
    steps: int = 500
    tasks_per_batch: int = 5
    images: int = 20
    methods: tuple[str, ...] = USUAL
    norm_stats: str = "per_task"

    def data(self, seed: int) -> DataConfig:
        """The images and tasks of a seed."""
        return DataConfig(self.source, drawn(self.tasks, seed), seed=seed)

    def experiment(
        self,
        name: str,
        budget: float | None,
        seed: int,
        *,
        steps: int | None = None,
        stops: bool = False,
        device: str = "cpu",
    ) -> Experiment:
        """The experiment of a method, with what is searched at its default.

        Args:
            name: the method, of `METHODS`.
            budget: trainable parameters ÷ N; None for the method's own size.
            seed: seed of the tasks, the split and the training.
            steps: number of updates, by default the set's.
            stops: stop as the thesis did, with patience and by halving the learning rate.
            device: training device.
        """
        method, steps = METHODS[name], steps or self.steps
        how: dict[str, Any] = {"device": device}
        if stops:
            how |= {"patience": PATIENCE, "schedule": "plateau"}
            how["eval_every"] = -(-steps // EVALUATIONS)
        experiment = Experiment(
            self.data(seed),
            training(steps, seed, **how),
            method=parse_method(method.text),
            target=self.target,
            budget=budget,
            latent_dim=64,
            base="zeros",
            norm_stats=self.norm_stats,
            batch_size=self.images * self.tasks_per_batch,
            tasks_per_batch=self.tasks_per_batch,
        )
        return with_settings(experiment, method.settings)


def with_methods(sets: Mapping[str, FreshTasks], names: tuple[str, ...]) -> dict[str, FreshTasks]:
    """The same sets, for other methods to compare."""
    return {name: replace(tasks, methods=names) for name, tasks in sets.items()}


_PAIRS = "split:{0}-{1},{2}-{3},{4}-{5},{6}-{7},{8}-{9}"
_TWENTY = "split:" + ",".join(
    f"{{{i}}}-{{{(i + apart) % 10}}}" for apart in (1, 3) for i in range(10)
)
_GROUPS = "split:{0}-{1}-{2}-{3}-{4},{5}-{6}-{7}-{8}-{9}"
_PERMUTED = "permuted:10,seed={seed}"
PERMUTED, TWENTY = "Fashion-MNIST, 10 permutations", "Fashion-MNIST, 20 pairs"
EXPLAINED = "CIFAR-10 2×5"
CPU_SETS = {
    PERMUTED: FreshTasks("fashion_mnist", _PERMUTED),
    EXPLAINED: FreshTasks("cifar10", _GROUPS, CNN, 350, 2, 30, (*USUAL, *VARIANTS)),
    TWENTY: FreshTasks("fashion_mnist", _TWENTY),
    "CIFAR-10 5×2": FreshTasks("cifar10", _PAIRS, CNN, 350, 5, 12),
    "MNIST, 10 permutations": FreshTasks("mnist", _PERMUTED),
}
# The thesis's targets; batches of 150 images, and at most 300 epochs of 54,000 or 45,000 images.
_MLP, _STEPS = "mlp:400-400-400", 108_000
FULL_SETS = {
    **{
        name: replace(tasks, target=_MLP, steps=_STEPS, images=150 // tasks.tasks_per_batch)
        for name, tasks in CPU_SETS.items()
        if tasks.target != CNN
    },
    **{
        f"{name}, {network}": replace(
            CPU_SETS[name],
            target=target,
            steps=90_000,
            images=150 // CPU_SETS[name].tasks_per_batch,
            norm_stats=norm_stats,
        )
        for name in (EXPLAINED, "CIFAR-10 5×2")
        for network, target, norm_stats in (
            ("ResNet32", "thesis_resnet", "per_task"),
            ("ResNet-9", "resnet9", "batch"),
            ("ResNet-18", "resnet18", "batch"),
        )
    },
}

"""The options that describe an experiment, shared by all commands that take them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from typer import Option

from sparsehyper._util.checks import check_integer
from sparsehyper.lab.data import SOURCES
from sparsehyper.lab.runs import Experiment
from sparsehyper.lab.runs.targets import function_of

TrustTarget = Annotated[
    list[str] | None,
    Option(
        help="A package.module:function that may be imported and called to build the run's target. "
        "May be given several times. Without it, only built-in targets are built.",
        show_default=False,
    ),
]

_DATA = "Data"
_MODEL = "Model"
_TRAINING = "Training"

# Option → its path in `Experiment.to_dict()`.
_PLACES = {
    "data": ("data", "source"),
    "tasks": ("data", "tasks"),
    "image_size": ("data", "image_size"),
    "val_fraction": ("data", "val_fraction"),
    "split_seed": ("data", "seed"),
    **{
        name: (name,)
        for name in (
            "target",
            "outputs",
            "latent_dim",
            "similarity",
            "base",
            "init",
            "norm_stats",
            "batch_size",
            "tasks_per_batch",
            "augment",
        )
    },
    **{
        name: ("training", name)
        for name in (
            "steps",
            "optimizer",
            "lr",
            "weight_decay",
            "schedule",
            "plateau_patience",
            "warmup",
            "clip",
            "accumulate",
            "eval_every",
            "patience",
            "precision",
            "compile",
            "device",
            "seed",
            "tensorboard",
        )
    },
}


def _options(  # never called: only its signature is used
    data: Annotated[
        str,
        Option(
            help="digits, mnist, fashion_mnist, cifar10, cifar100, several as mnist+cifar10, or a "
            r"folder [train|test]/TASK/CLASS/\*.png.",
            rich_help_panel=_DATA,
        ),
    ] = "digits",
    tasks: Annotated[
        str | None,
        Option(
            help="split:2  split:2,all  split:0-1,2-3  permuted:10  rotated:8  hue:5  "
            "split:2/hue:5. By default split:2, or a folder's own tasks.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        str | None,
        Option(
            envvar="SPARSEHYPER_DATA",
            help="Folder with NAME/train*.parquet and NAME/test*.parquet for each named data set; "
            "without it they are fetched by the datasets library.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        Option(help="Resize a folder's images to squares of this side.", rich_help_panel=_DATA),
    ] = None,
    val_fraction: Annotated[
        float, Option(help="Share of the training images to validate on.", rich_help_panel=_DATA)
    ] = 0.1,
    split_seed: Annotated[
        int,
        Option(
            help="Seed of the split into training, validation and test images.",
            rich_help_panel=_DATA,
        ),
    ] = 0,
    augment: Annotated[
        list[str] | None,
        Option(help="crop or flip; may be given twice.", rich_help_panel=_DATA),
    ] = None,
    target: Annotated[
        str,
        Option(
            help="mlp:128-64  cnn:16-32-64,norm=none|batch  "
            "resnet:depth=8,width=16,norm=none|batch  resnet32  resnet18; any of them with "
            "/masked:0.9 for fixed zeros. Or your own package.module:function, called as "
            "function(image_shape, n_classes) with image_shape = (channels, height, width); it "
            "returns a torch.nn.Module that maps images to logits.",
            rich_help_panel=_MODEL,
        ),
    ] = "mlp:128-64",
    outputs: Annotated[
        int | None,
        Option(
            help="Number of logits of the target; by default the classes of the largest task. More "
            "leave room for new tasks with more classes.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    latent_dim: Annotated[
        int, Option(help="Length of a task's embedding.", rich_help_panel=_MODEL)
    ] = 256,
    similarity: Annotated[
        float,
        Option(
            help="Initial cosine between two tasks' embeddings, in [0, 1): 0 for unrelated tasks, "
            "0.9 for variations of one another.",
            rich_help_panel=_MODEL,
        ),
    ] = 0.0,
    base: Annotated[
        str,
        Option(
            help="What the generated parameters are added to: learned (one trained number per "
            "parameter, shared by all tasks), zeros, pretrained (the target's own values) or "
            "residual (these, trained).",
            rich_help_panel=_MODEL,
        ),
    ] = "learned",
    init: Annotated[
        str,
        Option(
            help="Initial variance of generated parameters: torch, hyperfan_in or hyperfan_out.",
            rich_help_panel=_MODEL,
        ),
    ] = "torch",
    norm_stats: Annotated[
        str,
        Option(help="Batch-norm statistics: per_task, shared or batch.", rich_help_panel=_MODEL),
    ] = "per_task",
    steps: Annotated[
        int, Option(help="Number of optimiser updates.", rich_help_panel=_TRAINING)
    ] = 2000,
    batch_size: Annotated[int, Option(help="Images per batch.", rich_help_panel=_TRAINING)] = 100,
    tasks_per_batch: Annotated[int, Option(help="Tasks per batch.", rich_help_panel=_TRAINING)] = 1,
    accumulate: Annotated[int, Option(help="Batches per update.", rich_help_panel=_TRAINING)] = 1,
    optimizer: Annotated[
        str,
        Option(
            help="adam, adamw, radam, sgd or adafactor (needs little memory; try --lr 1e-2).",
            rich_help_panel=_TRAINING,
        ),
    ] = "adam",
    lr: Annotated[float, Option(help="Learning rate.", rich_help_panel=_TRAINING)] = 2e-3,
    weight_decay: Annotated[float, Option(help="Weight decay.", rich_help_panel=_TRAINING)] = 0.0,
    schedule: Annotated[
        str,
        Option(
            help="Learning rate after the warm-up: cosine, constant or plateau.",
            rich_help_panel=_TRAINING,
        ),
    ] = "cosine",
    plateau_patience: Annotated[
        int,
        Option(
            help="Evaluations without improvement before the plateau schedule halves the rate.",
            rich_help_panel=_TRAINING,
        ),
    ] = 5,
    warmup: Annotated[
        int | None,
        Option(
            help="Updates of linear warm-up; by default a tenth of --steps, at most 100.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    clip: Annotated[
        float,
        Option(help="Largest gradient norm; 0 for no limit.", rich_help_panel=_TRAINING),
    ] = 1.0,
    eval_every: Annotated[
        int,
        Option(
            help="Updates between evaluations on the validation images. Each evaluation writes a "
            "checkpoint, as do the last update and an interruption; --resume continues from the "
            "latest checkpoint.",
            rich_help_panel=_TRAINING,
        ),
    ] = 500,
    patience: Annotated[
        int | None,
        Option(help="Evaluations without improvement before stopping.", rich_help_panel=_TRAINING),
    ] = None,
    precision: Annotated[
        str, Option(help="fp32 or bf16 (autocast).", rich_help_panel=_TRAINING)
    ] = "fp32",
    compile: Annotated[
        bool, Option("--compile", help="Use torch.compile.", rich_help_panel=_TRAINING)
    ] = False,
    device: Annotated[
        str, Option(help="Device: auto, cpu, cuda, …", rich_help_panel=_TRAINING)
    ] = "auto",
    seed: Annotated[
        int, Option(help="Seed of everything except the split.", rich_help_panel=_TRAINING)
    ] = 0,
    tensorboard: Annotated[
        bool,
        Option(
            "--tensorboard", help="Write TensorBoard event files too.", rich_help_panel=_TRAINING
        ),
    ] = False,
) -> None: ...


def takes_experiment(
    *, without: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the experiment's options as ``**options``, ``without`` some of them."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        shared = inspect.signature(_options, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters += [p for name, p in shared.parameters.items() if name not in set(without)]

        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            command(*args, **kwargs)

        by_default = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters]
        wrapper.__signature__ = own.replace(parameters=by_default)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def experiment_from(options: dict[str, Any], method: dict[str, Any], **more: Any) -> Experiment:
    """Make the experiment that the options describe.

    Args:
        options: options, as ``takes_experiment`` passes them.
        method: the method's configuration.
        **more: other settings of `Experiment`, by name.

    Raises:
        ValueError: as `Experiment`; also for a pretrained base of a built-in target.
    """
    check_integer("split_seed", options["split_seed"], minimum=0)
    settings: dict[str, Any] = {"data": {}, "training": {}, "method": method, **more}
    apply_options(settings, options)
    if settings["data"]["source"] in SOURCES and settings["data"]["tasks"] is None:
        settings["data"]["tasks"] = "split:2"
    if settings["training"]["warmup"] is None:
        settings["training"]["warmup"] = min(100, settings["training"]["steps"] // 10)
    if settings["base"] == "pretrained" and function_of(settings["target"]) is None:
        raise ValueError(
            f"`base` 'pretrained' keeps the target's own values, which `target` "
            f"{settings['target']!r} draws at random; give a package.module:function that loads "
            "trained ones, or another base, such as 'residual'"
        )
    return Experiment.from_dict(settings)


def apply_options(settings: dict[str, Any], options: dict[str, Any]) -> None:
    """Write options into an experiment's settings, in place."""
    for name, value in options.items():
        if name not in _PLACES:
            continue
        *path, last = _PLACES[name]
        place = settings
        for key in path:
            place = place[key]
        if name == "clip" and value == 0:
            value = None
        place[last] = (value or []) if name == "augment" else value


def given(context: typer.Context) -> dict[str, Any]:
    """Options that were given on the command line, without those at their default."""
    return {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    }

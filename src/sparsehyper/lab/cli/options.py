"""The options that describe an experiment, shared by all commands that take them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer import Option

from sparsehyper._util.extras import require
from sparsehyper._util.files import read_file

if TYPE_CHECKING:
    from sparsehyper.lab.runs import Experiment

TrustTarget = Annotated[
    list[str] | None,
    Option(
        help="A package.module:function that may be imported and called to build the run's target. "
        "May be given several times. Without it, only built-in targets are built.",
        show_default=False,
    ),
]
Budget = Annotated[
    float | None,
    Option(
        help="Largest number of trainable parameters, of the generator and a trained base, "
        "per target parameter."
    ),
]


class _Setting(NamedTuple):
    """An option that sets one value of an experiment."""

    panel: str  # panel of the help text
    kind: Any
    default: Any
    path: str  # in `Experiment.to_dict()`; empty for an option that is not a setting
    help: str


_SETTINGS = {
    "data": _Setting(
        *("Data", str, "digits", "data.source"),
        "digits, mnist, fashion_mnist, cifar10, cifar100, omniglot_small1, several as "
        r"mnist+cifar10, a folder [train|val|test]/TASK/CLASS/\*.png, or a table of rows or "
        r"sequences, \*.csv or \*.parquet.",
    ),
    "task_column": _Setting(
        *("Data", str | None, None, "data.task_column"),
        "For a table: the column that names each row's task, such as its site.",
    ),
    "target_column": _Setting(
        *("Data", str | None, None, "data.target_column"),
        "For a table: the column to predict. All columns not named here are inputs.",
    ),
    "sequence_column": _Setting(
        *("Data", str | None, None, "data.sequence_column"),
        "For a table of sequences, such as windows of a signal: the column that names each row's "
        "sequence, among those of its task. Its rows are its steps, and together one sample.",
    ),
    "order_column": _Setting(
        *("Data", str | None, None, "data.order_column"),
        "For a table of sequences: the column of numbers, dates or times to sort the steps by; by "
        "default they are as in the file.",
    ),
    "targets": _Setting(
        *("Data", str | None, None, "data.targets"),
        "For a table: the column to predict holds numbers or classes; by default classes where it "
        "holds text, or true and false.",
    ),
    "tasks": _Setting(
        *("Data", str | None, None, "data.tasks"),
        "split:2  split:2,all  split:0-1,2-3  permuted:10  rotated:8  hue:5  split:2/hue:5  "
        "alphabets:20. By default split:2, or a folder's own tasks.",
    ),
    "data_dir": _Setting(
        *("Data", str | None, None, ""),
        "Folder with NAME/train*.parquet and NAME/test*.parquet for each named data set; without "
        "it they are fetched by the datasets library.",
    ),
    "image_size": _Setting(
        *("Data", int | None, None, "data.image_size"),
        "Resize a folder's images to squares of this side.",
    ),
    "val_fraction": _Setting(
        *("Data", float, 0.1, "data.val_fraction"), "Share of the training images to validate on."
    ),
    "split_seed": _Setting(
        *("Data", int, 0, "data.seed"),
        "Seed of the split into training, validation and test images.",
    ),
    "augment": _Setting(
        *("Data", list[str] | None, None, "augment"),
        "crop, flip or affine (shifts, turns and sizes); may be given several times.",
    ),
    "target": _Setting(
        *("Model", str | None, None, "target"),
        "mlp:128-64: layers of these widths, the default. cnn:16-32-64,norm=batch|none,"
        "pool=max|stride: blocks of these channels, each a 3×3 convolution, norm, ReLU and 2×2 "
        "max-pooling; the default for sequences, along their steps. "
        "resnet:depth=8,width=16,norm=batch|none: a residual network; resnet32 and resnet18 for "
        "short; resnet9 and thesis_resnet are others. Any of them with /masked:0.9 for fixed "
        "zeros. Or your own package.module:function, called as function(image_shape, n_classes) "
        "with image_shape = (channels, height, width), (features,) of rows or (channels, steps) of "
        "sequences; it returns a torch.nn.Module that maps these to logits.",
    ),
    "outputs": _Setting(
        *("Model", int | None, None, "outputs"),
        "Number of logits of the target; by default the classes of the largest task. More leave "
        "room for new tasks with more classes.",
    ),
    "conditioner": _Setting(
        *("Model", str, "task_embedding", "conditioner"),
        "What the models depend on: task_embedding (a trained vector for each task), support_set "
        "(examples of the task, so that a new one takes no training; averaged by class, or all "
        "together with support_set:pool=examples), input_encoder (the input alone: a model for "
        "each image) or input_and_task. Encoders have the form of the target.",
    ),
    "latent_dim": _Setting(
        *("Model", int | None, None, "latent_dim"),
        "Length of an embedding, by default 256; 64 for input_and_task, which has its cube in "
        "weights.",
    ),
    "similarity": _Setting(
        *("Model", float, 0.0, "similarity"),
        "Initial cosine between two tasks' embeddings, in [0, 1): 0 for unrelated tasks, 0.9 for "
        "variations of one another.",
    ),
    "head": _Setting(
        *("Model", str | None, None, "head"),
        "The target's last layer: generated, or solved from each task's images by ridge or "
        "prototypes. By default ridge if tasks have classes of their own or numbers are "
        "predicted, and generated if all have the same.",
    ),
    "base": _Setting(
        *("Model", str | None, None, "base"),
        "What the generated parameters are added to: learned (one trained number per parameter, "
        "shared by all tasks), zeros, pretrained (the target's own values) or residual (these, "
        "trained). By default learned, and residual with a head that is solved.",
    ),
    "init": _Setting(
        *("Model", str, "torch", "init"),
        "Initial variance of generated parameters: torch, hyperfan_in or hyperfan_out.",
    ),
    "norm_stats": _Setting(
        *("Model", str, "per_task", "norm_stats"),
        "Batch-norm statistics: per_task, shared or batch.",
    ),
    "steps": _Setting(*("Training", int, 2000, "training.steps"), "Number of optimiser updates."),
    "batch_size": _Setting(*("Training", int, 100, "batch_size"), "Images per batch."),
    "tasks_per_batch": _Setting(*("Training", int, 1, "tasks_per_batch"), "Tasks per batch."),
    "accumulate": _Setting(*("Training", int, 1, "training.accumulate"), "Batches per update."),
    "optimizer": _Setting(
        *("Training", str, "adam", "training.optimizer"),
        "adam, adamw, radam, sgd or adafactor (needs little memory; try --lr 1e-2).",
    ),
    "lr": _Setting(*("Training", float, 2e-3, "training.lr"), "Learning rate."),
    "weight_decay": _Setting(*("Training", float, 0.0, "training.weight_decay"), "Weight decay."),
    "schedule": _Setting(
        *("Training", str, "cosine", "training.schedule"),
        "Learning rate after the warm-up: cosine, constant or plateau.",
    ),
    "plateau_patience": _Setting(
        *("Training", int, 5, "training.plateau_patience"),
        "Evaluations without improvement before the plateau schedule halves the rate.",
    ),
    "warmup": _Setting(
        *("Training", int | None, None, "training.warmup"),
        "Updates of linear warm-up; by default a tenth of --steps, at most 100.",
    ),
    "clip": _Setting(
        *("Training", float, 1.0, "training.clip"), "Largest gradient norm; 0 for no limit."
    ),
    "eval_every": _Setting(
        *("Training", int, 500, "training.eval_every"),
        "Updates between evaluations on the validation images. Each evaluation writes a "
        "checkpoint, as do the last update and an interruption; --resume continues from the "
        "latest checkpoint.",
    ),
    "patience": _Setting(
        *("Training", int | None, None, "training.patience"),
        "Evaluations without improvement before stopping.",
    ),
    "precision": _Setting(
        *("Training", str, "fp32", "training.precision"), "fp32 or bf16 (autocast)."
    ),
    "compile": _Setting(*("Training", bool, False, "training.compile"), "Use torch.compile."),
    "cuda_graphs": _Setting(
        *("Training", bool, False, "training.cuda_graphs"),
        "Replay recorded steps on one GPU: much faster for small targets.",
    ),
    "shard": _Setting(
        *("Training", bool, False, "training.shard"),
        "Spread the generator's weights, gradients and optimiser state over the processes.",
    ),
    "device": _Setting(*("Training", str, "auto", "training.device"), "Device: auto, cpu, cuda, …"),
    "seed": _Setting(
        *("Training", int, 0, "training.seed"), "Seed of everything except the split."
    ),
    "log_with": _Setting(
        *("Training", str | None, None, "training.log_with"),
        "Send metrics to tensorboard (event files in --out), wandb, mlflow or trackio too.",
    ),
}


def takes_experiment(
    *, without: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the experiment's options as ``**options``, ``without`` some of them."""
    left_out = set(without)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        parameters = [
            p.replace(kind=p.KEYWORD_ONLY)
            for p in own.parameters.values()
            if p.kind is not p.VAR_KEYWORD
        ]
        parameters += [_parameter(name) for name in _SETTINGS if name not in left_out]
        parameters.append(_CONFIG)

        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            command(*args, **kwargs)

        wrapper.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _read_config(context: typer.Context, file: Path | None) -> Path | None:
    """Take a file's values as the defaults of this call's options."""
    if file is None or context.resilient_parsing:
        return file
    yaml = require("yaml", "cli")
    try:
        found = yaml.safe_load(read_file(file))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{file} must hold lines such as `steps: 500`")
    options = {o.lstrip("-"): p for p in context.command.params for o in p.opts if o != "--config"}
    defaults = {}
    for name, value in found.items():
        if name == "trust-target" or (name == "target" and _is_code(value)):
            raise typer.BadParameter(
                f"{file} has {name}: {value!r}, which would run code; give it on the command line"
            )
        if name not in options:
            raise typer.BadParameter(f"{file} has {name!r}, which is no option: {list(options)}")
        several = getattr(options[name], "multiple", False)
        values = value if several and isinstance(value, list) else [value]
        if not all(isinstance(v, (str, int, float)) for v in values):  # a bool is an int
            raise typer.BadParameter(f"{file} has {name}: {value!r}; it takes one value")
        words = [v if isinstance(v, bool) else str(v) for v in values]  # as in a shell
        defaults[str(options[name].name)] = words if several else words[0]
    context.default_map = defaults
    return file


def _is_code(target: Any) -> bool:
    from sparsehyper.lab.runs.targets import function_of

    return function_of(str(target)) is not None


_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        Option(
            callback=_read_config,
            is_eager=True,  # before the options that it gives values to
            help="YAML file of options, such as steps: 500; those on the command line win.",
        ),
    ],
)


def _parameter(name: str) -> inspect.Parameter:
    """An option as a parameter of a command."""
    panel, kind, default, _, text = _SETTINGS[name]
    flag = [f"--{name.replace('_', '-')}"] if kind is bool else []
    envvar = "SPARSEHYPER_DATA" if name == "data_dir" else None
    option = Option(*flag, help=text, rich_help_panel=panel, envvar=envvar)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, option],
    )


def experiment_from(options: dict[str, Any], method: dict[str, Any], **more: Any) -> Experiment:
    """Make the experiment that the options describe.

    Args:
        options: options, as ``takes_experiment`` passes them. Without ``target`` it is an MLP, or
            a CNN for sequences; without ``head`` it is generated; without ``base`` it is learned,
            or residual with a head that is solved; without ``latent_dim`` it is 256, or 64 where
            it counts three times over.
        method: the method's configuration.
        **more: other settings of `Experiment`, by name.

    Raises:
        ValueError: as `Experiment`; also for a pretrained base of a built-in target.
    """
    from sparsehyper._util.checks import check_integer
    from sparsehyper.conditioning import InputAndTask
    from sparsehyper.lab.data import SOURCES
    from sparsehyper.lab.runs import Experiment
    from sparsehyper.lab.runs.config import BY_INPUT, GENERATED
    from sparsehyper.lab.runs.targets import function_of

    check_integer("split_seed", options["split_seed"], minimum=0)
    settings: dict[str, Any] = {"data": {}, "training": {}, "method": method, **more}
    apply_options(settings, options)
    if settings["data"]["source"] in SOURCES and settings["data"]["tasks"] is None:
        settings["data"]["tasks"] = "split:2"
    if settings["training"]["warmup"] is None:
        settings["training"]["warmup"] = min(100, settings["training"]["steps"] // 10)
    if settings["target"] is None:
        sequences = settings["data"]["sequence_column"] is not None
        # A model for each input sees one sample, on which a batch norm cannot work.
        norm = ",norm=none" if settings["conditioner"] in BY_INPUT else ""
        settings["target"] = f"cnn:16-32-64{norm}" if sequences else "mlp:128-64"
    if settings["conditioner"] in BY_INPUT:  # as many models at a time as in training
        settings["training"]["eval_batch_size"] = min(500, settings["batch_size"])
    settings["head"] = settings["head"] or GENERATED
    if settings["latent_dim"] is None:
        settings["latent_dim"] = 64 if settings["conditioner"] == InputAndTask.kind else 256
    if settings["base"] is None:
        settings["base"] = "learned" if settings["head"] == GENERATED else "residual"
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
        if name not in _SETTINGS or not _SETTINGS[name].path:
            continue
        part, _, last = _SETTINGS[name].path.rpartition(".")
        place = settings[part] if part else settings
        if name == "clip" and value == 0:
            value = None
        place[last] = (value or []) if name == "augment" else value


def given(context: typer.Context) -> dict[str, Any]:
    """Options given on the command line or by --config, without those at their default."""
    return {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None
        and source.name in ("COMMANDLINE", "DEFAULT_MAP")
    }

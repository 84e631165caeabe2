"""Many-task image data: sources of images, tasks made of them, and batches."""

from sparsehyper.data.batches import AUGMENTATIONS, Batches
from sparsehyper.data.folder import load_folder
from sparsehyper.data.make import make_tasks
from sparsehyper.data.makers import Hue, Permuted, Rotated, Split, TaskMaker
from sparsehyper.data.parsing import TASK_MAKERS, maker_from_config, parse_tasks
from sparsehyper.data.source import Images, Source, Task
from sparsehyper.data.sources import SOURCES, load_source
from sparsehyper.data.tasks import Batch, TaskSet, TaskSplit

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "TASK_MAKERS",
    "Batch",
    "Batches",
    "Hue",
    "Images",
    "Permuted",
    "Rotated",
    "Source",
    "Split",
    "Task",
    "TaskMaker",
    "TaskSet",
    "TaskSplit",
    "load_folder",
    "load_source",
    "make_tasks",
    "maker_from_config",
    "parse_tasks",
]

"""Data for many tasks: sources of images, tables, tasks made of them, and batches."""

from sparsehyper.lab.data.assembly import make_tasks
from sparsehyper.lab.data.batches import AUGMENTATIONS, Batches
from sparsehyper.lab.data.columns import TARGETS, Columns
from sparsehyper.lab.data.datasets import SOURCES, is_source, load_source, prepared_by
from sparsehyper.lab.data.folder import LabelledTask, load_folder, load_new_tasks
from sparsehyper.lab.data.image_files import find_images, load_images
from sparsehyper.lab.data.makers import Alphabets, Hue, Permuted, Rotated, Split, TaskMaker
from sparsehyper.lab.data.parsing import TASK_MAKERS, maker_from_config, parse_tasks
from sparsehyper.lab.data.shared import SharedTasks
from sparsehyper.lab.data.source import Images, Source, Task, join_sources
from sparsehyper.lab.data.table import load_new_rows, load_table, read_rows
from sparsehyper.lab.data.table_files import is_table, names_of_columns, read_table
from sparsehyper.lab.data.tasks import Batch, TaskInfo, TaskSet, TaskSplit, images_of, shots_of

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "TARGETS",
    "TASK_MAKERS",
    "Alphabets",
    "Batch",
    "Batches",
    "Columns",
    "Hue",
    "Images",
    "LabelledTask",
    "Permuted",
    "Rotated",
    "SharedTasks",
    "Source",
    "Split",
    "Task",
    "TaskInfo",
    "TaskMaker",
    "TaskSet",
    "TaskSplit",
    "find_images",
    "images_of",
    "is_source",
    "is_table",
    "join_sources",
    "load_folder",
    "load_images",
    "load_new_rows",
    "load_new_tasks",
    "load_source",
    "load_table",
    "make_tasks",
    "maker_from_config",
    "names_of_columns",
    "parse_tasks",
    "prepared_by",
    "read_rows",
    "read_table",
    "shots_of",
]

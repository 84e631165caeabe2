"""Targets that are changes of a module: LoRA, FiLM and masks; merging, and the files of peft."""

from sparsehyper.peft.directories import save_peft
from sparsehyper.peft.reproduce import load_peft
from sparsehyper.target.adapters import film, lora, masked, merge

__all__ = ["film", "load_peft", "lora", "masked", "merge", "save_peft"]

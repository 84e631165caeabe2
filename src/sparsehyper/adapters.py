"""Targets that are changes of a module: LoRA, FiLM and masks; and how to merge them into it."""

from sparsehyper.target.adapters import film, lora, masked, merge

__all__ = ["film", "lora", "masked", "merge"]

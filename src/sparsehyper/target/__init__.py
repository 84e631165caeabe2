"""Any ``nn.Module`` as a function of generated tensors; README.md says how and why.

target            the module, its layout and its base: from θ to the output
initialisation    mean and standard deviation of each generated tensor
unpacking, blocks from a flat vector to tensors, and back
replica_plan      which modules a call copies, and where its tensors go
replicas          one call on shallow copies
references        modules that a value refers to
handover          copies that the backward pass runs again
norm_statistics   batch-norm statistics of each task
many_tasks        a batch of several tasks
whole_batch       one run for all of them, every sample under its own tensors
sharing, trial    which tasks share a run of the target
adapters          targets that are changes of a module: LoRA, FiLM, masks
copying           deep copies of modules
residual          residual networks, as targets of experiments
"""

"""Any ``nn.Module`` as a function of generated tensors.

``target`` joins the parts: which tensors are generated (``layout``), how they are drawn at first
(``initialisation``), how a flat vector becomes tensors (``unpacking``), how a call runs on them
(``replicas``), and what batch norms keep of each task (``norm_statistics``). ``many_tasks`` runs
a batch of several tasks, ``adapters`` makes targets of changes to a pretrained module, and
``copying`` copies modules.
"""

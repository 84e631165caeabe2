"""Adapters in the files of the package peft, out of a hypernetwork and into one.

directories   the files of one adapter: save_peft, read_peft
tensors       the factors of one layer in these files
reproduce     a hypernetwork that generates given adapters: load_peft
"""

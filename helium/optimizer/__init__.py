"""The logical optimizer: a driver over rules, one file each.

Source: Helium, §4 (pruning, common subgraphs, cache substitution). Ours differ in that LLM
operators with deterministic sampling are common subgraphs too, and equal rows are computed once.
"""

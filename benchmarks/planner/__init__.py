"""Benchmarks of the planner: distance to the proven optimum, planning time and memory."""

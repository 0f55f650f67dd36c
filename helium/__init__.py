"""Workflows as query plans: language, optimizer, planner and runtime.

This package imports neither vllm nor torch; the engine's side is ``vllm_helium``.
"""

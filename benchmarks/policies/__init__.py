"""Scheduling and eviction policies from the literature, on vLLM's own scheduler."""

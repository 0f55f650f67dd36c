"""Measurements on a GPU, from an archive that needs neither a network nor vLLM's compiled files."""

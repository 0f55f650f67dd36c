"""Real systems on the CPU: frameworks over stock vLLM, our runtime over this fork."""

"""Models that need no hub: a small real one from PyPI and tiny random ones for tests.

Nothing here imports vllm.
"""

from vllm_helium.models.smollm2 import ensure_smollm2
from vllm_helium.models.tiny import make_tiny_llama

__all__ = ["ensure_smollm2", "make_tiny_llama"]

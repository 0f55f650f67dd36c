"""What runs inside the engine: the only package that imports vllm.

Importing this package, ``config`` or ``request`` must not import vllm: upstream's own modules
import them while they are being loaded.
"""

"""The host tier: KV blocks that the plan will read again live on in host memory.

The tree (``vllm_helium.prefix_cache``) decides which block is where; ``moves`` is what one step
must copy, ``prefetch`` what should come back before anybody asks, ``host_memory`` the copies on a
worker. vLLM's connector interface carries the moves; see
``vllm_helium.integration.host_tier_connector``.
"""

"""The prefix cache: a templated radix tree over KV blocks in place of upstream's block hashes.

``index`` is the compiled core, which knows blocks and tokens but no engine. ``block_pool``,
``coordinator`` and ``manager`` put it behind upstream's interfaces; ``plan_uses`` tells it what a
plan will read next. Importing this package must not import vllm.
"""

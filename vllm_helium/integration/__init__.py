"""The only folder that touches vLLM's private names: one module per hook, named after its patch."""

"""The workflow-aware scheduler: plan registry, waiting queue, and the scheduler itself."""

"""Other systems' ways to run a workflow, written from their papers."""

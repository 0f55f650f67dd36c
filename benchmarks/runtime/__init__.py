"""What the runtime itself costs."""

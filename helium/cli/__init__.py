"""The command ``helium``."""

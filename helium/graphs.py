"""Building graphs from operators: ``from helium import graphs``."""

from helium.dsl.graph import Graph, build

__all__ = ["Graph", "build"]

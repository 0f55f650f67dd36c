"""Prompt templates of LLM operators and the radix tree that holds them."""

from helium.templates.rendering import Run, Template, TemplateRenderer, Value, VariableRun
from helium.templates.segments import segment_lengths
from helium.templates.tokenizer import (
    Encoding,
    PromptTokenizer,
    TransformersTokenizer,
    WordTokenizer,
)
from helium.templates.tree import StaticPrefix, TemplateTree

__all__ = [
    "Encoding",
    "PromptTokenizer",
    "Run",
    "StaticPrefix",
    "Template",
    "TemplateRenderer",
    "TemplateTree",
    "TransformersTokenizer",
    "Value",
    "VariableRun",
    "WordTokenizer",
    "segment_lengths",
]

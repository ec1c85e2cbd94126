"""The four stages of training an LLM, from random weights to a reasoning model."""

__version__ = "0.1.0"

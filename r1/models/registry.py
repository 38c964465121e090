"""The table of models that configs name."""

from r1.registry import Registry

MODELS = Registry("model")

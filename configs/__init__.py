"""Hydra configs; installed as `r1.configs`."""

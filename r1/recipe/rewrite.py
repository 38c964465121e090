"""Rewriting sampled completions by a template, as R1's cold-start data was rewritten into one readable style."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from r1.types import RolloutGroup


def rewrite_groups(groups: list[RolloutGroup], replacements: Mapping[str, str]) -> list[RolloutGroup]:
    """Replace phrases in the completions' text, in the order given; scores must be computed afterwards.

    R1 had a larger model rewrite and translate (arXiv 2501.12948 v2, cold start); phrases are what a template can do.
    Token ids are kept as they were sampled: they count tokens and are no longer the text's.

    Args:
        groups: as sampled.
        replacements: phrase -> what stands in its place.
    """
    if not replacements:
        return groups
    return [
        replace(
            group,
            rollouts=tuple(
                replace(r, completion=replace(r.completion, text=_rewritten(r.completion.text, replacements)))
                for r in group.rollouts
            ),
        )
        for group in groups
    ]


def _rewritten(text: str, replacements: Mapping[str, str]) -> str:
    for phrase, substitute in replacements.items():
        text = text.replace(phrase, substitute)
    return text

"""Rewriting changes the text that is scored and kept, and nothing else."""

from r1.recipe.rewrite import rewrite_groups
from r1.types import Completion, Problem, Prompt, Rollout, RolloutGroup


def test_phrases_are_replaced_in_order():
    completion = Completion(text="1+1=2 zai 2+2=4", token_ids=(1, 2), logps=(-0.1, -0.2))
    prompt = Prompt(problem=Problem(prompt="q", answer="4"), text="q zai", token_ids=(0,))
    group = RolloutGroup(prompt=prompt, rollouts=(Rollout(completion=completion),))
    (rewritten,) = rewrite_groups([group], {"zai": "then", "then": "so"})
    assert rewritten.rollouts[0].completion.text == "1+1=2 so 2+2=4"
    assert rewritten.rollouts[0].completion.token_ids == (1, 2)
    assert rewritten.prompt.text == "q zai"
    assert rewrite_groups([group], {}) == [group]

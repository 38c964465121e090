"""Policies, reference policies and tokenizers."""

from r1.models.policy import Policy
from r1.models.pretrained import pretrained
from r1.models.reference import Reference, build_reference
from r1.models.registry import MODELS
from r1.models.reward_function import RewardModelReward
from r1.models.reward_model import Reading, RewardModel, reward_model
from r1.models.teacher import Teacher, check_same_tokenizer
from r1.models.tiny import tiny_llama, tiny_qwen2, tiny_qwen3
from r1.models.tokenizer import byte_tokenizer, load_tokenizer

__all__ = [
    "MODELS",
    "Policy",
    "Reading",
    "Reference",
    "RewardModel",
    "RewardModelReward",
    "Teacher",
    "build_reference",
    "byte_tokenizer",
    "check_same_tokenizer",
    "load_tokenizer",
    "pretrained",
    "reward_model",
    "tiny_llama",
    "tiny_qwen2",
    "tiny_qwen3",
]

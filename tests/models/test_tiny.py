import pytest
import torch

from r1.models import MODELS, byte_tokenizer, tiny_llama, tiny_qwen2, tiny_qwen3
from r1.registry import RegistryError

BUILDERS = [tiny_llama, tiny_qwen2, tiny_qwen3]


@pytest.mark.parametrize("build", BUILDERS)
def test_weights_depend_on_the_seed_alone(build):
    torch.manual_seed(1)
    first = build(seed=3).fingerprint()
    torch.randn(10)
    assert build(seed=3).fingerprint() == first
    assert build(seed=4).fingerprint() != first


@pytest.mark.parametrize("build", BUILDERS)
def test_building_leaves_the_global_random_state_as_it_was(build):
    torch.manual_seed(5)
    expected = torch.randn(4)
    torch.manual_seed(5)
    build(seed=0)
    assert torch.equal(torch.randn(4), expected)


def test_number_of_parameters_of_the_default_llama():
    # Embedding 264*64, tied; each of 3 layers: 4 attention matrices 64*64, 3 feed-forward 64*192, 2 norms; final norm.
    assert tiny_llama().num_parameters == 264 * 64 + 3 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64) + 64


def test_untied_embeddings_add_one_matrix():
    assert tiny_llama(tie_word_embeddings=False).num_parameters - tiny_llama().num_parameters == 264 * 64


def test_grouped_query_attention_shrinks_keys_and_values():
    # Two of four heads left: each of 3 layers loses half of two 64*64 matrices.
    assert tiny_llama().num_parameters - tiny_llama(num_kv_heads=2).num_parameters == 3 * 64 * 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 66}, "hidden_size 66 is not divisible by num_heads 4"),
        ({"hidden_size": 12}, "hidden_size 12 / num_heads 4 = 3 must be even"),
        ({"num_kv_heads": 3}, "num_heads 4 is not divisible by num_kv_heads 3"),
        ({"num_layers": 0}, "must all be at least 1"),
        ({"vocab_size": 100}, "vocab_size must be at least 264"),
        ({"vocab_size": 300}, "vocab_size 300 needs a corpus"),
        ({"tokenizer": byte_tokenizer(), "vocab_size": 300}, "belong to the default tokenizer"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_llama(**arguments)


def test_models_are_built_by_name_with_checked_arguments():
    assert {"tiny_llama", "tiny_qwen2", "tiny_qwen3", "pretrained"} <= set(MODELS.names())
    policy = MODELS.build("tiny_qwen2", hidden_size=32, num_heads=2)
    assert type(policy.model).__name__ == "Qwen2ForCausalLM"
    with pytest.raises(RegistryError, match="Did you mean 'hidden_size'"):
        MODELS.build("tiny_llama", hiden_size=32)


def test_completions_end_with_the_sequence_or_the_turn():
    policy = tiny_llama()
    assert policy.tokenizer.convert_ids_to_tokens(list(policy.eos_token_ids)) == ["<|endoftext|>", "<|im_end|>"]
    assert policy.tokenizer.convert_ids_to_tokens(policy.pad_token_id) == "<|pad|>"


def test_merges_are_learnt_from_a_corpus(tmp_path):
    # "hello" takes 4 merges and " world" 5: 264 + 9 tokens.
    (tmp_path / "corpus.txt").write_text("hello world\n" * 20)
    policy = tiny_llama(corpus=tmp_path / "corpus.txt", vocab_size=273)
    assert policy.model.config.vocab_size == len(policy.tokenizer) == 273
    assert len(policy.tokenizer.tokenize("hello world")) == 2


def test_a_tokenizer_whose_padding_is_end_of_sequence_keeps_that_embedding_trainable():
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    policy = tiny_llama(tokenizer=tokenizer)
    assert policy.model.get_input_embeddings().padding_idx is None
    assert policy.pad_token_id == policy.eos_token_ids[0] == 256

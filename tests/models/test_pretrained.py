from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, LlamaConfig, Qwen2Config, Qwen3Config

from r1.models import load_tokenizer, pretrained

TOKENIZERS = Path(__file__).parents[1] / "data" / "tokenizers"


def saved(directory, config_class=LlamaConfig, tokenizer="minimind", dtype=torch.float32, **kwargs):
    """A directory with a small random model and a published tokenizer, as transformers itself writes it."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / tokenizer)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    ids = dict(eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None)
    config = config_class(**{**sizes, **ids, "intermediate_size": 48, "vocab_size": len(tokenizer), **kwargs})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config, Qwen3Config, Gemma2Config])
@pytest.mark.parametrize("tokenizer", ["minimind", "torchtitan_tiny"])
def test_logps_equal_those_of_transformers(config_class, tokenizer, tmp_path):
    saved(tmp_path, config_class, tokenizer)
    policy = pretrained(tmp_path)
    ids = torch.tensor([policy.tokenizer("A long question? <think>yes</think> An answer.").input_ids])
    mask = torch.ones(1, ids.shape[1] - 3, dtype=torch.bool)
    with torch.no_grad():
        logps, _ = policy(ids, torch.tensor([3]), mask)
        logits = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    expected = torch.log_softmax(logits[0, 2:-1], -1).gather(-1, ids[0, 3:, None]).T
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-5)
    assert policy.eos_token_ids == (policy.tokenizer.eos_token_id,)


@pytest.mark.parametrize("name", ["minimind", "torchtitan_tiny"])
def test_published_tokenizers_load_with_the_ids_of_transformers(name):
    text = "Solve 12 + 30 = x , step by step ! \u4e16"
    theirs = AutoTokenizer.from_pretrained(TOKENIZERS / name)
    assert load_tokenizer(str(TOKENIZERS / name))(text).input_ids == theirs(text).input_ids


def test_dtype_is_as_stored_or_as_asked(tmp_path):
    saved(tmp_path, dtype=torch.bfloat16)
    assert pretrained(tmp_path).model.dtype == torch.bfloat16
    assert pretrained(tmp_path, dtype="float32").model.dtype == torch.float32
    with pytest.raises(ValueError, match=r"unknown dtype 'float23'. Did you mean 'float32'\?"):
        pretrained(tmp_path, dtype="float23")


def test_attention_and_checkpointing_are_passed_on(tmp_path):
    policy = pretrained(saved(tmp_path), attn_implementation="eager", gradient_checkpointing=True)
    assert policy.model.config._attn_implementation == "eager"
    assert all(layer.gradient_checkpointing for layer in policy.model.model.layers)


def test_eos_tokens_of_the_generation_config_are_added(tmp_path):
    saved(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    assert pretrained(tmp_path).eos_token_ids == (2, 0)  # <|im_end|> is the tokenizer's own


def test_a_published_model_saves_back_with_the_same_fingerprint(tmp_path):
    policy = pretrained(saved(tmp_path / "a", Qwen2Config, tie_word_embeddings=True))
    assert pretrained(policy.save(tmp_path / "b")).fingerprint() == policy.fingerprint()


def test_chat_template_can_be_a_text_or_a_file(tmp_path):
    saved(tmp_path)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (tmp_path / "template.jinja").write_text(template)
    for given in (template, str(tmp_path / "template.jinja")):
        tokenizer = pretrained(tmp_path, chat_template=given).tokenizer
        assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    with pytest.raises(ValueError, match="neither a Jinja template nor a file"):
        pretrained(tmp_path, chat_template="missing.jinja")


def test_a_path_that_does_not_exist_names_the_nearest_folder(tmp_path):
    saved(tmp_path / "checkpoints" / "model")
    with pytest.raises(ValueError, match=r"no such folder\. The nearest existing folder is .*Did you mean 'model'"):
        pretrained(tmp_path / "checkpoints" / "modle")
    with pytest.raises(ValueError, match=r"nearest existing folder is .*Did you mean 'checkpoints'"):
        pretrained(tmp_path / "checkpoint" / "model")


def test_a_folder_without_a_model_names_the_models_below_it(tmp_path):
    saved(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match=r"has no config\.json\. Models below it: .*run/model"):
        pretrained(tmp_path)


def test_a_folder_without_weights_says_so(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"could not be loaded: .*model\.safetensors"):
        pretrained(tmp_path)


def test_a_hub_name_that_cannot_be_reached_is_one_clear_error(offline):
    with pytest.raises(ValueError, match=r"no model 'Nobody/no-model': no such folder, and the hub did not give it"):
        pretrained("Nobody/no-model")

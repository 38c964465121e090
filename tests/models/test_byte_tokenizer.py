import random

import pytest
from transformers import AutoTokenizer

from r1.models import byte_tokenizer, load_tokenizer
from r1.models.tokenizer import SPLIT_PATTERNS, TAG_TOKENS, ensure_pad_token, save_tokenizer

AWKWARD = [
    "",
    " ",
    "  two  spaces , before . punctuation ! don't",
    "tabs\tand\r\nlines\n\n\n",
    "\x00\x01\x7f",
    "e\u0301 is not \u00e9, \u212b is not \u00c5",  # decomposed letters, the Angstrom sign
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001d11e \u4e16\u754c \u0645\u0631\u062d\u0628\u0627",
    "<think> 6*7=42 </think><answer>42</answer>",
    "<|endoftext|><|im_start|>user\nhi<|im_end|>",
    "<thi nk></thinks>",
]


def random_texts(num_texts=300):
    draw = random.Random(0)
    planes = [(0x20, 0x7E), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    for _ in range(num_texts):
        yield "".join(chr(draw.randint(*draw.choice(planes))) for _ in range(draw.randint(0, 40)))


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("split", ["qwen2", "llama3"])
def test_any_text_round_trips_exactly(merges, split, tmp_path):
    corpus = [*AWKWARD, "hello world 123456\n"] * 3 if merges else None
    built = byte_tokenizer(corpus, 300 if merges else None, split=split)
    save_tokenizer(built, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(built)
    for text in [*AWKWARD, *random_texts()]:
        ids = built(text).input_ids
        assert built.decode(ids) == text
        assert loaded(text).input_ids == ids
        assert loaded.decode(ids) == text


def test_without_merges_there_are_256_bytes_and_8_tokens():
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 264
    assert len(tokenizer("caf\u00e9").input_ids) == 5  # e acute is two bytes


def test_tags_are_single_tokens_that_decoding_keeps():
    tokenizer = byte_tokenizer()
    for tag in TAG_TOKENS:
        assert len(tokenizer(tag).input_ids) == 1
    ids = tokenizer("<think>a</think><answer>b</answer><|im_end|><|endoftext|>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think><answer>b</answer>"


def test_special_tokens_have_their_roles():
    tokenizer = byte_tokenizer()
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|endoftext|>", "<|pad|>", None)
    assert {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.all_special_tokens)


def test_chat_template_keeps_the_thinking_of_every_turn():
    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>1+1=2</think><answer>2</answer>"},
        {"role": "user", "content": "2+2?"},
    ]
    text = byte_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>user\n1+1?<|im_end|>\n"
        "<|im_start|>assistant\n<think>1+1=2</think><answer>2</answer><|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_split_decides_whether_digits_can_merge():
    corpus = ["123 123 123\n"] * 50
    assert byte_tokenizer(corpus, 270, split="qwen2").tokenize("123") == ["1", "2", "3"]
    assert byte_tokenizer(corpus, 270, split="llama3").tokenize("123") == ["123"]


def test_a_saved_qwen2_model_gets_its_tokenizer_back_without_a_normalizer(tmp_path):
    from r1.models import tiny_qwen2

    policy = tiny_qwen2()
    policy.save(tmp_path / "model")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    for text in AWKWARD:
        assert tokenizer(text).input_ids == policy.tokenizer(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_missing_padding_token_becomes_end_of_sequence():
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    assert ensure_pad_token(tokenizer).pad_token_id == tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither pad_token nor eos_token"):
        ensure_pad_token(tokenizer)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"Did you mean 'llama3'\?"):
        byte_tokenizer(split="lama3")
    with pytest.raises(ValueError, match="is not a file"):
        byte_tokenizer(str(tmp_path / "missing.txt"))
    assert set(SPLIT_PATTERNS) == {"qwen2", "llama3"}

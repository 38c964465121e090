from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from r1.models import Policy, byte_tokenizer, tiny_llama, tiny_qwen2, tiny_qwen3
from r1.native import NativeUnavailable, load_library
from r1.rollout import ENGINES
from r1.rollout.base import mix_seed
from r1.tensors import pad_rows
from r1.types import Problem, Prompt, SamplingParams

SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "initializer_range": 0.2}


def perturbed(policy, seed=1):
    """Move biases and norm weights off 0 and 1, where leaving them out would go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.model.named_parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
            assert parameter.abs().sum() > 0, name
    policy.eos_token_ids = (policy.tokenizer.eos_token_id, *range(0, 256, 16))
    return policy.eval()


def llama_with(**changes):
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=264, initializer_range=0.2, pad_token_id=257, eos_token_id=256, bos_token_id=None, **changes
    )  # fmt: skip
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(config), byte_tokenizer())


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "llama": lambda: tiny_llama(**SIZES),
    "llama_gqa_untied": lambda: tiny_llama(**SIZES, num_kv_heads=2, tie_word_embeddings=False),
    "llama_biased": lambda: llama_with(attention_bias=True, mlp_bias=True),
    "llama_wide_heads": lambda: llama_with(head_dim=16),
    "llama3_rope": lambda: llama_with(rope_parameters=LLAMA3_ROPE),
    "qwen2": lambda: tiny_qwen2(**SIZES),
    "qwen2_multi_query": lambda: tiny_qwen2(**SIZES, num_kv_heads=1),
    "qwen3": lambda: tiny_qwen3(**SIZES, num_kv_heads=2),
}


def prompts_of_lengths(*lengths):
    generator = torch.Generator().manual_seed(5)
    return [
        Prompt(
            problem=Problem(prompt=str(i), answer="", index=i),
            text="",
            token_ids=tuple(torch.randint(256, (n,), generator=generator).tolist()),
        )
        for i, n in enumerate(lengths)
    ]


PROMPTS = prompts_of_lengths(3, 9, 1, 5, 20)


def generate(policy, prompts=PROMPTS, *, max_batch_size=256, kernels="auto", **params):
    engine = ENGINES.build("local", max_batch_size=max_batch_size, kernels=kernels)
    engine.load_weights(policy)
    defaults = {"num_generations": 3, "max_tokens": 16, "seed": 11}
    return engine.generate(prompts, SamplingParams(**defaults | params))


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_completions_of_a_prompt_can_be_asked_for_one_by_one_and_in_any_order(kernels):
    if kernels == "native":
        try:
            load_library()
        except NativeUnavailable as error:
            pytest.skip(str(error))
    policy = perturbed(tiny_llama(**SIZES | {"num_heads": 2}))
    whole = completions(generate(policy, kernels=kernels, max_batch_size=4))
    order = [(4, 1), (0, 2), (1, 0), (4, 0), (0, 0), (3, 1), (0, 1), (4, 2)]
    asked = [replace(PROMPTS[index], first_sample=sample) for index, sample in order]
    groups = generate(policy, asked, kernels=kernels, max_batch_size=4, num_generations=1)
    for (index, sample), group in zip(order, groups, strict=True):
        (rollout,) = group.rollouts
        assert (rollout.completion.seed, rollout.completion.token_ids) == (
            whole[index, sample].seed,
            whole[index, sample].token_ids,
        )


def completions(groups):
    return {(g.prompt.problem.index, i): r.completion for g in groups for i, r in enumerate(g.rollouts)}


def forward_logps(policy, groups, temperature=1.0):
    """Log-probabilities of the completions in one right-padded training batch."""
    rows = [(g.prompt, r.completion) for g in groups for r in g.rollouts]
    input_ids = pad_rows([torch.tensor(p.token_ids + c.token_ids) for p, c in rows], policy.pad_token_id)
    lengths = torch.tensor([len(c.token_ids) for _, c in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    prompt_lengths = torch.tensor([len(p.token_ids) for p, _ in rows])
    with torch.no_grad():
        logps, _ = policy(input_ids, prompt_lengths, mask, temperature=temperature)
    return [row[m] for row, m in zip(logps, mask, strict=True)], [torch.tensor(c.logps) for _, c in rows]


@pytest.fixture(params=["torch", "native"])
def kernels(request):
    if request.param == "native":
        try:
            load_library()
        except NativeUnavailable as error:
            pytest.skip(str(error))
    return request.param


@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_generate_of_transformers(name, kernels):
    policy = perturbed(MODELS[name]())
    groups = generate(policy, num_generations=1, temperature=0.0, kernels=kernels)
    for group in groups:
        expected = policy.model.generate(
            torch.tensor([group.prompt.token_ids]), do_sample=False, max_new_tokens=16,
            eos_token_id=list(policy.eos_token_ids), pad_token_id=policy.pad_token_id,
        )  # fmt: skip
        assert list(group.rollouts[0].completion.token_ids) == expected[0, len(group.prompt.token_ids) :].tolist()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_logps_are_those_of_the_training_forward(name, temperature, top_p, kernels):
    policy = perturbed(MODELS[name]())
    groups = generate(policy, temperature=temperature, top_p=top_p, kernels=kernels)
    for expected, reported in zip(*forward_logps(policy, groups, temperature), strict=True):
        torch.testing.assert_close(reported, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("params", [{}, {"temperature": 0.6, "top_k": 40}, {"stop": ("e", "xy")}], ids=str)
def test_native_kernels_draw_the_tokens_of_torch(name, params):
    policy = perturbed(MODELS[name]())
    # Lengths on both sides of a block of 64 cache positions, and slots that are used again.
    options = {"prompts": prompts_of_lengths(3, 61, 70), "max_batch_size": 5, "max_tokens": 40, **params}
    native, torchs = (completions(generate(policy, kernels=kernels, **options)) for kernels in ("native", "torch"))
    assert native.keys() == torchs.keys()
    for key, expected in torchs.items():
        found = native[key]
        assert (found.token_ids, found.text) == (expected.token_ids, expected.text)
        assert found.finish_reason == expected.finish_reason
        torch.testing.assert_close(torch.tensor(found.logps), torch.tensor(expected.logps), rtol=0, atol=1e-5)


def test_native_kernels_are_refused_where_they_would_not_be_exact():
    policy = perturbed(MODELS["llama"]())
    with pytest.raises(ValueError, match=r"rollout.kernels=native: .*float32 on CPUs, this is torch.float64"):
        generate(policy.double(), kernels="native")
    with pytest.raises(ValueError, match=r"rollout.kernels: found 'nativ'\. Did you mean 'native'"):
        ENGINES.build("local", kernels="nativ")


def test_native_kernels_with_two_threads_draw_the_tokens_of_one():
    policy = perturbed(MODELS["qwen3"]())
    expected = completions(generate(policy, kernels="native"))
    torch.set_num_threads(2)
    try:
        found = completions(generate(policy, kernels="native"))
    finally:
        torch.set_num_threads(1)
    for key, completion in found.items():
        assert completion.token_ids == expected[key].token_ids
        torch.testing.assert_close(completion.logps, expected[key].logps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_completions_depend_neither_on_the_batch_nor_on_the_other_prompts(name):
    # In float64 rounding cannot flip a draw, so the claim is exact.
    policy = perturbed(MODELS[name]()).double()
    expected = completions(generate(policy))
    variants = [generate(policy, max_batch_size=size) for size in (1, 2, 4, 7)]
    variants += [generate(policy, PROMPTS[::-1]), generate(policy, PROMPTS[1::2], max_batch_size=4)]
    for groups in variants:
        for key, completion in completions(groups).items():
            assert completion.token_ids == expected[key].token_ids, key
            torch.testing.assert_close(completion.logps, expected[key].logps, rtol=0, atol=2e-6)


def test_groups_come_back_in_the_order_of_the_prompts():
    groups = generate(perturbed(MODELS["llama"]()), PROMPTS[::-1], max_batch_size=2)
    assert [g.prompt.problem.index for g in groups] == [4, 3, 2, 1, 0]
    assert generate(perturbed(MODELS["llama"]()), []) == []


def test_every_completion_has_its_own_stream():
    found = completions(generate(perturbed(MODELS["llama"]())))
    assert {key: c.seed for key, c in found.items()} == {(i, g): mix_seed(11, i, g) for i in range(5) for g in range(3)}
    assert len({c.seed for c in found.values()}) == 15
    assert len({c.token_ids for c in found.values()}) > 10
    other = completions(generate(perturbed(MODELS["llama"]()), seed=12))
    assert sum(other[key].token_ids == c.token_ids for key, c in found.items()) < 5


def test_a_completion_ends_with_end_of_sequence_or_at_max_tokens():
    policy = perturbed(MODELS["llama"]())
    found = completions(generate(policy, num_generations=8)).values()
    stopped = [c for c in found if c.finish_reason == "stop"]
    assert 0 < len(stopped) < len(found)
    for c in found:
        assert len(c.logps) == len(c.token_ids) <= 16
        assert not set(c.token_ids[:-1]) & set(policy.eos_token_ids)
        if c.finish_reason == "stop":
            assert c.token_ids[-1] in policy.eos_token_ids
            assert c.text == policy.tokenizer.decode(c.token_ids[:-1], skip_special_tokens=True)
        else:
            assert len(c.token_ids) == 16 and c.token_ids[-1] not in policy.eos_token_ids
            assert c.text == policy.tokenizer.decode(c.token_ids, skip_special_tokens=True)


def test_max_tokens_of_one_gives_one_token():
    found = completions(generate(perturbed(MODELS["llama"]()), max_tokens=1)).values()
    assert {len(c.token_ids) for c in found} == {1}


def test_the_prefill_of_the_prompt_is_kept():
    prompts = [replace(p, prefill="<think>") for p in PROMPTS]
    c = generate(perturbed(MODELS["llama"]()), prompts)[0].rollouts[0].completion
    assert c.turn == "<think>" + c.text


def forced(policy, text):
    """Make a policy write `text` over and over, whatever it reads: each token's embedding points at the next one."""
    ids = policy.tokenizer.encode(text)
    assert len(set(ids)) == len(ids)
    model = policy.model
    for name, parameter in model.named_parameters():
        parameter.data.zero_()
        if "norm" in name:
            parameter.data.fill_(1.0)
    for i, token in enumerate(ids):
        model.model.embed_tokens.weight.data[token, i] = 1.0
        model.lm_head.weight.data[ids[(i + 1) % len(ids)], i] = 1.0
    policy.eos_token_ids = (policy.tokenizer.eos_token_id,)
    return ids


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("abc</x>d", "</x>", "abc</x>"),
        ("ab\u4e16\u754c\u3002cd", "\u4e16\u754c\u3002", "ab\u4e16\u754c\u3002"),  # 3 characters, 9 byte tokens
        ("abcdefgh", "zz", "abcdefghabcd"),
    ],
)
def test_a_stop_string_ends_the_completion_and_stays_in_its_text(text, stop, expected):
    policy = tiny_llama(**SIZES | {"initializer_range": 0.02}, tie_word_embeddings=False)
    ids = forced(policy, text)
    prompt = Prompt(problem=Problem(prompt="", answer=""), text="", token_ids=(ids[-1],))
    (group,) = generate(policy, [prompt], num_generations=1, temperature=0.0, max_tokens=12, stop=(stop, "never"))
    completion = group.rollouts[0].completion
    assert completion.text == expected
    assert completion.finish_reason == ("stop" if expected.endswith(stop) else "length")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: MistralConfig(num_key_value_heads=2), "architecture 'mistral' is not one of llama, qwen2, qwen3"),
        (lambda: Qwen2Config(use_sliding_window=True, max_window_layers=0, sliding_window=8), "sliding-window"),
        (lambda: LlamaConfig(hidden_act="gelu"), "activation 'gelu' is not silu"),
        (
            lambda: LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "rope type 'dynamic'",
        ),
    ],
)
def test_models_it_would_decode_wrongly_are_refused(model, reason):
    config = model()
    config.update({"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48})
    config.update(
        {"vocab_size": 264, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 257, "eos_token_id": 256}
    )
    policy = Policy(AutoModelForCausalLM.from_config(config), byte_tokenizer())
    with pytest.raises(
        ValueError, match=rf"rollout.name=local cannot decode this model: {reason}.*rollout=transformers"
    ):
        ENGINES.build("local").load_weights(policy)


def test_a_policy_with_an_adapter_is_refused():
    pytest.importorskip("peft")
    from r1.models.lora import add_lora

    policy = tiny_llama(**SIZES)
    for options in ({"r": 2, "alpha": 4}, {"r": 2, "alpha": 4, "target_modules": ["lm_head"]}):
        adapted = Policy(add_lora(tiny_llama(**SIZES).model, options), policy.tokenizer)
        with pytest.raises(ValueError, match=r"cannot decode this model: .*adapters"):
            ENGINES.build("local").load_weights(adapted)


@pytest.mark.parametrize("engine", [{"name": "local"}, {"name": "local", "kernels": "torch"}, {"name": "transformers"}])
def test_weights_that_are_no_numbers_stop_the_rollout(engine):
    policy = tiny_llama(**SIZES)
    policy.model.model.norm.weight.data[0] = float("nan")
    built = ENGINES.build(engine["name"], **{k: v for k, v in engine.items() if k != "name"})
    built.load_weights(policy)
    with pytest.raises(FloatingPointError, match="logits became NaN after 0 tokens"):
        built.generate(PROMPTS, SamplingParams(max_tokens=4))


def test_new_weights_are_used_after_load_weights():
    policy = perturbed(MODELS["llama"]())
    engine = ENGINES.build("local")
    params = SamplingParams(num_generations=1, max_tokens=8, temperature=0.0)
    engine.load_weights(policy)
    before = engine.generate(PROMPTS, params)
    with torch.no_grad():
        policy.model.model.layers[0].self_attn.q_proj.weight.normal_()
        policy.model.model.layers[0].mlp.gate_proj.weight.normal_()
    engine.load_weights(policy)
    after = engine.generate(PROMPTS, params)
    assert completions(before) != completions(after)
    for expected, reported in zip(*forward_logps(policy, after), strict=True):
        torch.testing.assert_close(reported, expected, rtol=0, atol=1e-5)

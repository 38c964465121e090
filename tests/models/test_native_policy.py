"""The fused loops against the model's own modules: same numbers, same gradients."""

import pytest
import torch

from r1.logps import token_logps
from r1.models import Policy, tiny_llama, tiny_qwen2, tiny_qwen3
from r1.models.packing import pack
from r1.native import NativeUnavailable, load_library
from r1.native.gradients import adding_in_place, embedding
from r1.native.ops import matmul

try:
    load_library()
except NativeUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

SIZES = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "intermediate_size": 80, "initializer_range": 0.2}
MODELS = {
    "llama": lambda **k: tiny_llama(**SIZES, **k),
    "llama_gqa_untied": lambda **k: tiny_llama(**SIZES, num_kv_heads=2, tie_word_embeddings=False, **k),
    "llama_wide_heads": lambda **k: tiny_llama(**SIZES | {"num_heads": 1}, **k),
    "qwen2": lambda **k: tiny_qwen2(**SIZES, **k),
    "qwen3_gqa": lambda **k: tiny_qwen3(**SIZES, num_kv_heads=1, **k),
}


def perturbed(policy):
    """Move biases and norm weights off 0 and 1, where leaving them out would go unnoticed."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return policy


def batch():
    """Rows of two prompts, one of which three rows share; lengths on both sides of a tile of 4 and a block of 64."""
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randint(256, (7,), generator=generator), torch.randint(256, (70,), generator=generator)
    prompts = [first, second, first, first, second]
    lengths = torch.tensor([1, 9, 66, 0, 130])
    rows = [
        torch.cat([p, torch.randint(256, (n,), generator=generator)])
        for p, n in zip(prompts, lengths.tolist(), strict=True)
    ]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=257)
    mask = torch.arange(130) < lengths[:, None]
    mask[2, 10:12] = False  # tokens that count for nothing but are read by those behind them
    return input_ids, torch.tensor([len(p) for p in prompts]), mask


def weighted(policy, **options):
    """Log-probabilities, entropy, and the gradients of a weighted sum."""
    input_ids, prompt_lengths, mask = batch()
    logps, entropy = policy(input_ids, prompt_lengths, mask, with_entropy=True, **options)
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(3))
    policy.zero_grad()
    (logps * weights).sum().backward()
    return logps.detach(), entropy, {name: p.grad for name, p in policy.model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_native_kernels_give_the_logps_entropies_and_gradients_of_the_modules(name, temperature):
    native, plain = (perturbed(MODELS[name](kernels=kernels)) for kernels in ("native", "torch"))
    assert native.is_native() and not plain.is_native()
    found, wanted = (weighted(policy, temperature=temperature, chunk_size=50) for policy in (native, plain))
    exact = weighted(perturbed(MODELS[name](kernels="torch")).double(), temperature=temperature)
    # Measured against float64, no further off than the modules themselves, by a factor.
    for number in (0, 1):
        errors = [float((part[number] - exact[number]).abs().max()) for part in (found, wanted)]
        assert errors[0] < 2 * errors[1] + 1e-6 and errors[0] < 5e-5, (number, errors)
    for key, gradient in exact[2].items():
        errors = [float((g[2][key] - gradient).norm() / gradient.norm()) for g in (found, wanted)]
        assert errors[0] < 2 * errors[1] + 1e-6, (key, errors)


def test_two_threads_give_the_gradients_of_one():
    policy = perturbed(MODELS["qwen3_gqa"]())
    one = weighted(policy)
    torch.set_num_threads(2)
    try:
        two = weighted(policy)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0], two[0])
    for key, gradient in one[2].items():
        torch.testing.assert_close(two[2][key], gradient, rtol=1e-5, atol=1e-6)


def test_equal_prompts_are_computed_once_and_last_tokens_not_at_all():
    input_ids, prompt_lengths, mask = batch()
    packed = pack(input_ids, prompt_lengths, mask)
    # 7 + 70 prompt tokens; completions of 1, 9, 66, 0 and 130 tokens, each without its last.
    assert len(packed.input_ids) == 77 + 0 + 8 + 65 + 129
    assert packed.segments.tolist() == [[0, 7, 0, 0], [7, 70, 0, 0], [77, 8, 7, 70], [85, 65, 0, 7], [150, 129, 7, 70]]
    assert len(packed.completion_index) == int(mask.sum()) == 204
    assert packed.completion_index[:3].tolist() == [6, 76, 77]


def test_rows_that_the_mask_does_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"completion tokens stand at 3\.\.5, expected 1\.\.4"):
        pack(torch.zeros(1, 5, dtype=torch.int64), torch.tensor([3]), torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (13, 40, 33), (700, 5, 400), (30, 900, 270), (500, 390, 300)])
def test_products_of_matrices_are_those_of_torch(sizes):
    m, k, n = sizes
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
    wanted = left.double() @ right.double()
    for a in (left, left.t().contiguous().t()):
        for b in (right, right.t().contiguous().t()):
            torch.testing.assert_close(matmul(a, b).double(), wanted, rtol=1e-5, atol=1e-4)
    start = torch.randn(m, n, generator=generator)
    torch.testing.assert_close(
        matmul(left, right, out=start.clone(), add=True).double(), start + wanted, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("vocab", [7, 3000, 5000])  # tiles of 2,048: one, two, three
def test_the_fused_softmax_gives_logps_entropies_and_gradients_of_torch(bias, vocab):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(9, 20, generator=generator), torch.randn(vocab, 20, generator=generator)]
    inputs += [torch.randn(vocab, generator=generator)] if bias else []
    targets = torch.randint(vocab, (9,), generator=generator)

    def run(dtype, native):
        tensors = [t.to(dtype).requires_grad_() for t in inputs]
        options = {"bias": tensors[2] if bias else None, "temperature": 0.7, "logit_scale": 0.5, "chunk_size": 4}
        logps, entropy = token_logps(*tensors[:2], targets, with_entropy=True, native=native, **options)
        return logps.detach(), entropy, *torch.autograd.grad(logps.square().sum(), tensors)

    for found, wanted in zip(run(torch.float32, True), run(torch.float64, False), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5)


def gradients_of_two_passes(policy, **options):
    """The gradients that two micro-batches add up to, and where those of the embedding lay in between."""
    input_ids, prompt_lengths, mask = batch()
    weight = policy.model.get_input_embeddings().weight
    places = []
    for rows in (slice(0, 3), slice(3, 5)):
        logps, _ = policy(input_ids[rows], prompt_lengths[rows], mask[rows])
        with adding_in_place(**options):
            logps.square().sum().backward()
        places.append(weight.grad.data_ptr())
    return {name: p.grad for name, p in policy.model.named_parameters()}, places


@pytest.mark.parametrize("name", ["llama", "llama_gqa_untied"])
def test_gradients_added_in_place_are_those_that_autograd_adds(name):
    found, places = gradients_of_two_passes(perturbed(MODELS[name]()))
    wanted, _ = gradients_of_two_passes(perturbed(MODELS[name]()), allowed=False)
    assert places[0] == places[1]
    for key, gradient in wanted.items():
        assert (found[key] - gradient).norm() < 1e-6 * gradient.norm(), key


def test_gradients_that_someone_waits_for_go_through_autograd():
    policy = MODELS["llama_gqa_untied"]()
    head, table = policy.model.get_output_embeddings().weight, policy.model.get_input_embeddings().weight
    heard = []
    head.register_hook(heard.append)
    table.register_post_accumulate_grad_hook(heard.append)
    with adding_in_place():
        policy(*batch())[0].sum().backward()
    assert len(heard) == 2
    assert torch.equal(heard[0], head.grad)
    before = [weight.grad.clone() for weight in (head, table)]
    taken = torch.autograd.grad(policy(*batch())[0].sum(), (head, table))  # outside of `adding_in_place`
    for one, kept, weight in zip(taken, before, (head, table), strict=True):
        assert torch.equal(one, kept)  # the same pass once more
        assert torch.equal(weight.grad, kept)


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_the_embedding_is_torchs(padding_idx):
    ids, table = torch.tensor([1, 3, 1, 0]), torch.arange(12.0).view(4, 3).requires_grad_()
    results = []
    for function in (embedding, torch.nn.functional.embedding):
        rows = function(ids, table, padding_idx)
        results.append((rows, *torch.autograd.grad((rows * torch.arange(12.0).view(4, 3)).sum(), table)))
    for found, wanted in zip(*results, strict=True):
        assert torch.equal(found, wanted)


def test_the_modules_are_used_where_someone_listens_to_them_or_their_numbers_are_others():
    policy = MODELS["llama"]()
    assert policy.is_native()
    handle = policy.model.model.layers[0].register_forward_hook(lambda *a: None)
    assert not policy.is_native()
    handle.remove()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not policy.is_native()
    assert policy.is_native()
    assert not MODELS["llama"](gradient_checkpointing=True).is_native()
    assert not policy.double().is_native()


def test_kernels_that_cannot_be_had_are_refused():
    with pytest.raises(ValueError, match=r"model.kernels: found 'nativ'\. Did you mean 'native'"):
        MODELS["llama"](kernels="nativ")
    narrow = tiny_llama(**SIZES | {"num_heads": 16})  # heads of 4
    assert not narrow.is_native()
    with pytest.raises(ValueError, match=r"model\.kernels=native: heads of 4, not a multiple"):
        Policy(narrow.model, narrow.tokenizer, kernels="native")

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, CohereConfig, GPT2Config

from r1.models import MODELS, Policy, Reading, RewardModel, byte_tokenizer, tiny_llama, tiny_qwen2
from r1.models.lora import add_lora
from r1.models.reward_function import RewardModelReward
from r1.registry import RegistryError
from r1.rewards import build_rewards
from r1.types import Completion, Problem

QUESTIONS = ["6A-2B+4:", "1A+1:", "3A*3B-1C+2:"]
TEXTS = ["<answer>8</answer>", "2", "the answer is <answer>0</answer>"]


def of_family(config_class, **kwargs):
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    sizes |= dict(intermediate_size=48, vocab_size=264, pad_token_id=257, eos_token_id=256, bos_token_id=None)
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(config_class(**sizes | kwargs)), byte_tokenizer())


FAMILIES = {
    "llama": lambda: tiny_llama(hidden_size=32, num_layers=2, num_heads=2),
    "qwen2": lambda: tiny_qwen2(hidden_size=32, num_layers=2, num_heads=2, tie_word_embeddings=False),
    "gpt2": lambda: of_family(GPT2Config, n_embd=32, n_layer=2, n_head=2),
    "cohere": lambda: of_family(CohereConfig),  # transformers has no classifier of this one
}


def with_head(policy, **reading):
    """A reward model whose head is not zero, as after training."""
    model = RewardModel.from_policy(policy, reading=Reading(**reading)).eval()
    torch.nn.init.normal_(model.model.score.weight, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = with_head(FAMILIES["llama"]())
    model.normalise_on(QUESTIONS, TEXTS)
    return model.save(tmp_path_factory.mktemp("reward_model") / "model")


def test_an_untrained_head_gives_every_text_the_same_score():
    assert RewardModel.from_policy(FAMILIES["llama"]()).score(QUESTIONS, TEXTS) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_is_the_head_on_the_policy_s_last_hidden_state(family):
    policy = FAMILIES[family]().eval()
    model = with_head(policy)
    found = model.score(QUESTIONS, TEXTS, batch_size=2)
    for question, text, score in zip(QUESTIONS, TEXTS, found, strict=True):
        ids = [*policy.tokenizer.encode(question + text), policy.tokenizer.eos_token_id]
        with torch.no_grad():
            hidden = policy.model.get_decoder()(input_ids=torch.tensor([ids]))[0][0, -1]
            assert score == pytest.approx(float(hidden @ model.model.score.weight[0]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_scores_the_same_when_it_is_loaded(family, tmp_path):
    model = with_head(FAMILIES[family](), prompt={"name": "plain", "text": "Q: {prompt} A: "}, part="response")
    model.normalise_on(QUESTIONS, TEXTS)
    loaded = MODELS.build("reward_model", path=model.save(tmp_path / "model"))
    expected = model.score(QUESTIONS, TEXTS, normalize=True)
    assert loaded.score(QUESTIONS, TEXTS, normalize=True) == pytest.approx(expected, abs=1e-5)
    assert loaded.fingerprint() == model.fingerprint()
    assert loaded.reading == model.reading
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]  # nothing half-written stays


def test_transformers_loads_it_as_a_classifier_with_one_label(saved):
    theirs = AutoModelForSequenceClassification.from_pretrained(saved)
    model = MODELS.build("reward_model", path=saved)
    ids, lengths = model._padded([sum(model.encode(q, t), ()) for q, t in zip(QUESTIONS, TEXTS, strict=True)])
    torch.testing.assert_close(theirs(input_ids=ids).logits[:, 0], model(ids, lengths))


def test_saving_again_replaces_the_directory(saved):
    model = MODELS.build("reward_model", path=saved)
    (saved / "old.txt").write_text("stale")
    assert model.save(saved) == saved
    assert not (saved / "old.txt").exists() and (saved / "model.safetensors").is_file()


def test_normalised_scores_of_the_training_texts_have_mean_0_and_deviation_1(saved):
    scores = MODELS.build("reward_model", path=saved).score(QUESTIONS, TEXTS, normalize=True)
    assert math.fsum(scores) / 3 == pytest.approx(0, abs=1e-5)
    assert math.fsum(s * s for s in scores) / 3 == pytest.approx(1, rel=1e-4)


def test_the_backbone_is_a_copy():
    policy = FAMILIES["llama"]()
    model = RewardModel.from_policy(policy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    fresh = FAMILIES["llama"]()
    assert policy.fingerprint() == fresh.fingerprint()


def test_a_classifier_without_our_file_reads_through_the_chat_template(saved, tmp_path):
    model = MODELS.build("reward_model", path=saved)
    folder = model.save(tmp_path / "model")
    (folder / "reward_model.json").unlink()
    loaded = MODELS.build("reward_model", path=folder)
    assert loaded.reading == Reading(prompt={"name": "chat"})
    prompt, ids = loaded.encode("hi", "there")
    tokenizer = loaded.tokenizer
    assert tokenizer.decode(prompt) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == "there<|endoftext|>"


def test_what_is_no_reward_model_is_refused(tmp_path):
    policy = FAMILIES["llama"]()
    with pytest.raises(ValueError, match="holds a LlamaForCausalLM, expected a sequence classifier with one label"):
        MODELS.build("reward_model", path=policy.save(tmp_path / "policy"))
    with pytest.raises(ValueError, match=r"has no config.json. Did you mean 'policy'"):
        MODELS.build("reward_model", path=tmp_path / "polcy")
    with pytest.raises(ValueError, match=r"model.lora=null"):
        RewardModel.from_policy(Policy(add_lora(policy.model, {"r": 2}), policy.tokenizer))
    with pytest.raises(ValueError, match=r"part='sumary'. Did you mean 'summary'"):
        Reading(part="sumary")


# ---------------------------------------------------------------------------------------------------- as a reward


def completions(*turns):
    return [Completion(text=turn) for turn in turns]


def problems(*tasks):
    return [Problem(prompt=QUESTIONS[0], answer="8", task=task) for task in tasks]


def test_the_reward_does_not_see_the_thinking(saved):
    reward = RewardModelReward(path=str(saved))
    found = reward(
        completions("<think>a</think><answer>8</answer>", "<think>bcd</think><answer>8</answer>", "<answer>8</answer>"),
        problems("chain", "chain", "chain"),
    )
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)
    whole = RewardModelReward(path=str(saved), part="response")(
        completions("<think>a</think><answer>8</answer>", "<think>bcd</think><answer>8</answer>"),
        problems("chain", "chain"),
    )
    assert abs(whole[0] - whole[1]) > 1e-3


def test_the_reward_is_the_normalised_score_within_bounds(saved):
    model = MODELS.build("reward_model", path=saved)
    (expected,) = model.score(QUESTIONS[:1], ["<answer>8</answer>"], normalize=True)
    turn = completions("<think>a</think><answer>8</answer>")
    assert RewardModelReward(path=str(saved))(turn, problems("chain")) == pytest.approx([expected])
    (raw,) = model.score(QUESTIONS[:1], ["<answer>8</answer>"])
    assert RewardModelReward(path=str(saved), normalize=False, bound=100.0)(turn, problems("chain")) == [raw]
    bounded = RewardModelReward(path=str(saved), bound=0.01)(turn, problems("chain"))
    assert bounded == [math.copysign(0.01, expected)]


def test_a_turn_without_a_summary_gets_the_lowest_score(saved):
    reward = RewardModelReward(path=str(saved), bound=2.0)
    assert reward(completions("<think>6A-2", "<think>a</think> "), problems("chain", "chain")) == [-2.0, -2.0]


def test_configs_name_it_among_the_rewards(saved):
    rewards = build_rewards({"reward_model": {"path": str(saved), "weight": 0.5}})
    (breakdown,) = rewards.score(completions("<answer>8</answer>"), problems("chain"))
    assert breakdown.reward == 0.5 * breakdown.rewards["reward_model"] != 0
    assert not any(p.requires_grad for p in rewards.rewards["reward_model"].model.parameters())
    with pytest.raises(RegistryError, match="needs 'path'"):
        build_rewards({"reward_model": {}})
    with pytest.raises(ValueError, match=r"reward.reward_model.bound must be above 0"):
        RewardModelReward(path=str(saved), bound=0.0)


def test_the_reading_is_plain_json(saved):
    reading = json.loads((saved / "reward_model.json").read_text())
    assert set(reading) == {"prompt", "part", "mean", "std"}

"""`r1.plan` as a user sees it: the meaning of a config, and one error with the nearest that works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Qwen2Config

from r1.plan import main
from r1.recipe.shapes import KNOWN_MODELS, model_shape

ROOT = Path(__file__).parents[1]
SEVEN_B = ("experiment=r1_zero_qwen2_5_7b", "strategy.name=deepspeed_zero3", "trainer.devices=8", "trainer.num_nodes=4")
# As published with the weights (safetensors totals on the model pages).
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def planned(capsys, *arguments):
    main(arguments)
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """Run a plan that must be refused with status 2 and one error; return that error."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("error: ") == 1
    return captured.err


def part(text, name):
    """Return the size of a part in MiB."""
    number, unit = re.search(rf"{re.escape(name)} +([\d.]+) ([MG])iB", text).groups()
    return float(number) * (1024 if unit == "G" else 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_model_has_the_published_number_of_parameters(name):
    assert name in KNOWN_MODELS
    assert model_shape({"name": "pretrained", "path": name}).num_parameters == PUBLISHED[name]


def test_seven_billion_parameters_are_planned_without_the_hub_and_without_their_memory():
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # 6 GiB in all: 7.6e9 weights of two bytes would be 14.
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30)); import r1.plan; r1.plan.main()"
    )
    command = [sys.executable, "-c", code, *SEVEN_B]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "7,615,616,512 parameters" in done.stdout
    # 512 prompts x 16 = 8,192 rows, one pass in 16 minibatches; 8 x 4 = 32 ranks; 512 rows a step = 32 x 16 x 1.
    assert "512 prompts x 16 completions = 8,192 rows; 1 pass x 16 minibatches = 16 optimizer steps" in done.stdout
    assert "32 ranks x 16 micro-batches x 1 rows = 512 rows" in done.stdout
    # 10,400 / 16 = 650
    assert "10,400 optimizer steps = 650 rollouts" in done.stdout


def test_state_is_split_as_the_strategy_says(capsys):
    # 7,615,616,512 parameters, 4 bytes: 29,051 MiB. A key-value row of 33,280 tokens: 2 x 28 x 512 x 2 bytes each.
    whole, rest = 7_615_616_512 / 2**20, ("experiment=r1_zero_qwen2_5_7b", "trainer.devices=8", "trainer.num_nodes=4")
    expected = {  # weights, gradients, optimizer in bytes of a parameter on each device
        "ddp": (4, 4, 8),
        "fsdp": (4 / 32, 4 / 32, 8 / 32),
        # DeepSpeed: half-precision weights and gradients, 12 bytes of master copy and moments.
        "deepspeed_zero1": (2, 2, 12 / 32),
        "deepspeed_zero2": (2, 2 / 32, 12 / 32),
        "deepspeed_zero3": (2 / 32, 2 / 32, 12 / 32),
    }
    for name, factors in expected.items():
        text = planned(capsys, *rest, f"strategy.name={name}")
        for label, factor in zip(("weights", "gradients", "optimizer"), factors, strict=True):
            assert part(text, f"  {label} ") == pytest.approx(whole * factor, rel=0.01), (name, label)
    assert part(text, "key-value cache") == pytest.approx(16 * 33_280 * 2 * 28 * 512 * 2 / 2**20, rel=0.001)
    offload = planned(capsys, *rest, "strategy.name=deepspeed_zero3_offload")
    assert "optimizer  " not in offload.replace("optimizer step", "").replace("host", "")
    # 16 bytes x 7.6e9 / 32 ranks
    assert "host        3.55 GiB for each rank" in offload


def test_precision_halves_what_it_halves(capsys):
    full = planned(capsys, "experiment=demo_grpo")
    half = planned(capsys, "experiment=demo_grpo", "trainer.precision=bf16-true")
    mixed = planned(capsys, "experiment=demo_grpo", "trainer.precision=bf16-mixed")
    for label in ("  weights ", "  gradients ", "  optimizer "):
        assert part(half, label) == pytest.approx(part(full, label) / 2, abs=0.01)
        assert part(mixed, label) == part(full, label)
    assert part(half, "activations") < part(mixed, "activations") < part(full, "activations")


def test_too_little_memory_is_refused_with_the_nearest_that_fits_and_that_does_fit(capsys):
    error = refused(capsys, *SEVEN_B, "plan.device_memory_gib=80", "rollout.max_batch_size=256")
    assert error == (
        "error: too little memory: 482.88 GiB of 80.00 GiB, 10% of which stay free; "
        "nearest that fits: rollout.max_batch_size=16 (54.67 GiB)\n"
    )
    assert "fits        yes" in planned(capsys, *SEVEN_B, "plan.device_memory_gib=80")
    assert "no change known here helps" in refused(capsys, *SEVEN_B, "plan.device_memory_gib=1")


def test_ranks_that_do_not_divide_are_refused_with_the_nearest_that_do(capsys):
    # 8 x 16 / 2 = 64 rows a step: not for 3 ranks, but 9 prompts (72 = 3 x 24) are, and so are 2 ranks.
    error = refused(capsys, "experiment=demo_grpo", "trainer.devices=3")
    assert "64 completions" in error and "algorithm.plan.num_prompts=9 on 3 ranks" in error and "or 2 ranks" in error
    assert "3 ranks x 1 micro-batches x 24 rows" in planned(
        capsys, "experiment=demo_grpo", "trainer.devices=3", "algorithm.plan.num_prompts=9"
    )
    # More ranks than rows: 2 x 4 rows for 16 ranks.
    small = ("experiment=demo_grpo", "rollout.sampling.num_generations=4", "algorithm.plan.num_minibatches=1")
    error = refused(capsys, *small, "algorithm.plan.num_prompts=2", "trainer.devices=16")
    assert "num_prompts=4 on 16 ranks, or 8 ranks" in error


@pytest.mark.parametrize(
    "arguments, expected",
    [
        # The demo's prompts have 17 tokens, its model 1,024 positions.
        (("rollout.sampling.max_tokens=2000",), "rollout.sampling.max_tokens=1007"),
        (("strategy.name=deepspeed_zero4",), "Did you mean 'deepspeed_zero3'?"),
        (("trainer.precision=bf16-mix",), "Did you mean 'bf16-mixed'?"),
        (("trainr.devices=2",), "Did you mean 'trainer.devices'?"),
        (("plan.device_memory=3",), "Did you mean 'device_memory_gib'?"),
        (("experiment=demo_distill", "algorithm.data.micro_batch_size=48"), "nearest that does: 32"),
        (("experiment=demo_distill", "algorithm.data.num_examples=100", "trainer.devices=4"), "batch_size=25"),
        (("experiment=demo_grpo", "init_from=null", "model=pretrained", "model.path=Qwen/Qwen2.5-8B"), "Qwen2.5-7B"),
        (("experiment=demo_grpo", "init_from=null", "model=pretrained"), "model.path"),
        (("loss.surrogate=cliped",), "Did you mean 'clipped'?"),
        (("loss.aggregation=mean",), "loss.aggregation: found 'mean'"),
        (("task.name=chian",), "Did you mean 'chain'?"),
        (("rollout.name=vlm",), "Did you mean 'vllm'?"),
        (("reference.kind=froze",), "Did you mean 'frozen'?"),
        (("loss.kl_coef=0.1",), "Choose reference=frozen"),
        (("rollout.sampling.top_p=3",), "rollout.sampling.top_p must be in (0, 1], found 3"),
        (("rollout.sampling.temperature=0",), "rollout.sampling.temperature: found 0, expected more than 0"),
        (("algorithm.plan.max_staleness=1",), "rollout=vllm"),
        (("model.num_heads=0",), "num_heads"),
        (("experiment=demo_sft", "algorithm.data.batch_size=0"), "algorithm.data.batch_size must be at least 1"),
        (("experiment=demo_distill", "algorithm.chunk_size=0"), "algorithm.chunk_size must be at least 1"),
        (("plan.completion_tokens=-4",), "plan.completion_tokens: found -4, expected 1 or more"),
        (("plan.headroom=2",), "plan.headroom: found 2, expected 0 or more and less than 1"),
        (("rollout.sampling.num_generations=0",), "rollout.sampling.num_generations must be at least 1, found 0"),
        (("rollout.sampling.num_generations=abc",), "rollout.sampling.num_generations: found 'abc', expected int"),
        (("algorithm.name=gropo",), "Did you mean 'grpo'?"),
        (("rollout.sampling=null",), "rollout.sampling.num_generations: found 1, expected at least 2"),
        (("rollout.max_batch_size=abc",), "rollout.max_batch_size: rollout engine 'local': found 'abc', expected int"),
        (("init_from=5",), "init_from: found 5, expected a folder or {experiment: name"),
    ],
)
def test_what_cannot_work_is_one_error_that_says_what_can(capsys, arguments, expected):
    assert expected in refused(capsys, *arguments)


@pytest.mark.parametrize("experiment", ["demo_sft", "demo_distill", "demo_on_policy", "demo_reward_model", "demo_grpo"])
def test_every_kind_of_training_has_a_plan(capsys, experiment):
    text = planned(capsys, f"experiment={experiment}")
    assert ("teacher     " in text) == (experiment in ("demo_distill", "demo_on_policy"))
    assert ("rollout     " in text) == (experiment in ("demo_on_policy", "demo_grpo"))
    assert "fits        yes" in text


def test_an_unknown_model_is_planned_from_its_config(capsys, tmp_path):
    Qwen2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000, intermediate_size=128
    ).save_pretrained(tmp_path)
    arguments = ("init_from=null", "model=pretrained", "model.path=mine/mine", f"plan.model_config={tmp_path}")
    assert "mine/mine (plan.model_config)" in planned(capsys, *arguments)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # 494 million weights of 2 bytes; on a CPU, of 4.
        (
            ("rollout=vllm", "rollout.flags={gpu_memory_utilization: 0.4}", "rollout.dtype=bfloat16"),
            "vLLM takes 0.4 of its GPUs' memory (gpu_memory_utilization), weights 0.92 GiB and key-value cache in it",
        ),
        (("rollout=vllm_colocated", "rollout.dtype=bfloat16"), "vLLM takes 0.3 of its GPUs' memory"),
        (
            ("rollout=vllm", "rollout.dtype=float32", "trainer.accelerator=cpu"),
            "vLLM takes weights 1.84 GiB + 1 GiB of key-value cache (VLLM_CPU_KVCACHE_SPACE): not counted above",
        ),
        (("rollout=vllm", "rollout.url=http://127.0.0.1:1"), "outside this process: its memory is not counted"),
    ],
)
def test_what_vllm_is_set_to_take_is_said(capsys, overrides, message):
    arguments = (
        "experiment=r1_zero_qwen2_5_7b",
        "init_from=null",
        "model.path=Qwen/Qwen2.5-0.5B",
        "rollout.sampling.max_tokens=256",
    )
    text = planned(capsys, *arguments, "trainer.accelerator=gpu", *overrides)
    assert f"engine      {message}" in text
    assert "engine      " not in planned(capsys, *arguments, "trainer.accelerator=gpu", "rollout=local")

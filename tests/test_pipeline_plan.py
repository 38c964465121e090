"""`pipeline.plan=true` composes and checks every stage, names mistakes by stage, and runs nothing."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from r1.config import compose_config, plain
from r1.pipeline import pipeline
from r1.recipe.dry_run import check, describe
from r1.recipe.pipeline import build_stages

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[1] / "configs" / "pipeline").glob("*.yaml"))


def planned(folder, *overrides, **definitions):
    """Plan a shipped pipeline with some of its definitions changed."""
    cfg = compose_config([*overrides, "pipeline.plan=true", f"output_dir={folder}"], name="pipeline")
    for name, node in definitions.items():
        cfg.pipeline.definitions[name] = OmegaConf.merge(cfg.pipeline.definitions[name], node)
    return pipeline(cfg)


def config_of(name, stage, *overrides):
    """The resolved config of a stage of a shipped pipeline."""
    definitions = plain(compose_config([f"pipeline={name}", *overrides], name="pipeline"))["pipeline"]["definitions"]
    (found,) = build_stages(definitions, [stage])
    overrides = [*found.config, *(f"{key}=given" for key in found.inputs), "output_dir=out"]
    return plain(compose_config(overrides, name=found.run))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_pipeline_is_planned_from_first_to_last(tmp_path, name, capsys):
    folder = tmp_path / "run"
    states = planned(folder, f"pipeline={name}")
    definitions = plain(compose_config([f"pipeline={name}"], name="pipeline"))["pipeline"]["definitions"]
    assert list(states) == list(definitions) and set(states.values()) == {"will run"}
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in states)
    assert not folder.exists()


def test_a_part_is_planned_and_says_what_it_lacks(tmp_path, capsys):
    states = planned(tmp_path, "pipeline=r1_tiny", "pipeline.stages=[base,cold_data]")
    assert states == {"base": "will run", "cold_data": "lacks zero"}
    assert "zero/model" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stage", "override", "message"),
    [
        ("base", "algorithm.data.stile=clean", "stage 'base': .*stile"),
        ("base", "+algorithm.data.stile=clean", "'base': algorithm.data.stile: no such key.* Did you mean 'style'"),
        ("zero", "+algorithm.plan.num_promts=3", "stage 'zero': algorithm.plan.num_promts: no such key"),
        ("zero", "trainer.devices=3", "stage 'zero': the 64 completions of an optimizer step cannot be shared by 3"),
        ("zero", "task=countdwn", "stage 'zero': .*countdwn"),
        ("zero", "loss.kl_coef=0.1", "stage 'zero': a KL term needs a reference policy"),
        ("cold_data", "filters.prefer=last", "stage 'cold_data': .*prefer"),
        ("eval_base", "num_problems=0", "stage 'eval_base': num_problems must be at least 1"),
        ("llama_logits", "+teacher.dtpe=auto", "stage 'llama_logits': teacher.dtpe: model 'pretrained' takes no"),
        ("claims", "+claims.claims.9.comparisons=[{a: zro, b: base, says: x}]", "claims.9: no evaluation 'zro'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_stage(tmp_path, stage, override, message):
    config = list(compose_config(["pipeline=r1_tiny"], name="pipeline").pipeline.definitions[stage].config)
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, "pipeline=r1_tiny", f"pipeline.stages=[{stage}]", **{stage: {"config": [*config, override]}})


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [
        # arXiv 2501.12948 v2 and the Nature article, as configs say beside each value.
        ("zero", {"a rollout 512 x 16", "16 steps of 512", "32768 tokens", "lr 3e-06 constant", "KL 0.001 moving"}),
        ("zero_long", {"65536 tokens", "2200 steps"}),
        ("rl_reasoning", {"T 1", "reward 1 accuracy + 1 format + 1 language"}),
        ("r1", {"T 0.7", "400 steps"}),
        ("cold_sft", {"batch 128", "lr 5e-05 cosine"}),
        ("sft", {"batch 128", "lr 5e-05 cosine"}),
        ("reward_model", {"batch 256", "lr 6e-06 constant", "258 steps"}),
        ("qwen_sft", {"batch 64", "lr 0.0001 cosine"}),
        ("llama_8b_sft", {"batch 64", "lr 5e-05 cosine"}),
        ("qwen_rl", {"lr 2e-06 constant", "10000 steps"}),
    ],
)
def test_the_numbers_of_the_paper_arrive_in_the_stages(stage, wanted):
    config = config_of("r1_qwen", stage)
    words = set(describe("train", config).split(", "))
    assert wanted <= words, words


def test_details_that_the_table_does_not_show_are_the_paper_s_too():
    zero, sft, evaluation = (config_of("r1_qwen", name) for name in ("zero", "sft", "eval_aime_r1"))
    assert zero["reference"] == {"kind": "moving", "every": 400}
    assert zero["loss"]["options"] == {"clip_low": 10.0, "clip_high": 10.0}
    assert sft["algorithm"]["optimizer"]["final_ratio"] == 0.1 and sft["init_from"] is None
    assert (evaluation["num_samples"], evaluation["temperature"], evaluation["top_p"]) == (64, 0.6, 0.95)
    assert config_of("r1_qwen", "reward_model")["algorithm"]["data"]["path"] is None
    assert config_of("r1_qwen", "rejection")["decontaminate"] == []
    files = "pipeline.files.benchmarks='[math500.jsonl,aime2024.jsonl]'"
    for stage in ("cold_data", "rejection", "general"):
        assert config_of("r1_qwen", stage, files)["decontaminate"] == ["math500.jsonl", "aime2024.jsonl"]
    for stage in ("zero", "zero_long", "rl_reasoning", "rl_all", "r1", "qwen_rl", "qwen_sft_rl", "qwen_rl_short"):
        assert config_of("r1_qwen", stage, files)["decontaminate"] == ["math500.jsonl", "aime2024.jsonl"]
    assert config_of("r1_qwen", "qwen_sft")["model"]["path"] == "Qwen/Qwen2.5-1.5B"


@pytest.mark.parametrize("stage", ["rl_reasoning", "r1", "qwen_sft", "general", "eval_aime_r1"])
def test_a_stage_of_the_large_recipe_is_checked_without_its_models_and_data(stage):
    config = config_of("r1_qwen", stage)
    run = "train" if "trainer" in config else "evaluate" if "few_shot" in config else "sample"
    check(run, config)


def test_models_are_exchanged_in_one_place():
    overrides = ["pipeline=r1_qwen", "pipeline.models.base=Qwen/Qwen2.5-3B"]
    definitions = plain(compose_config(overrides, name="pipeline"))["pipeline"]["definitions"]
    for stage in ("zero", "cold_sft", "sft", "rl_all", "eval_base"):
        assert "model.path=Qwen/Qwen2.5-3B" in definitions[stage]["config"]


def test_an_evaluation_on_benchmarks_is_planned_without_their_files():
    overrides = ["model=given", "benchmark=[gsm8k,chain]", "k=4", "output_dir=out"]
    config = plain(compose_config(overrides, name="evaluate"))
    check("evaluate", config)
    assert describe("evaluate", config) == "all x 4 of gsm8k, chain, 32768 tokens, T 0.6, top-p 0.95"
    config["benchmark"]["gsm8k"]["task"]["fiels"] = []
    with pytest.raises(ValueError, match="Did you mean 'files'"):
        check("evaluate", config)

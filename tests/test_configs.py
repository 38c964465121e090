"""Every shipped config composes, resolves and builds; a key that nothing reads is an error that names it."""

from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from r1.config import compose_config, explain_choices, explain_overrides, instantiate_all, plain
from r1.losses.objective import PolicyObjective
from r1.modules.distill import DistillModule
from r1.modules.grpo import GRPOModule
from r1.modules.reward_model import RewardModelModule
from r1.modules.sft import SFTModule
from r1.recipe.assemble import assemble
from r1.recipe.compare import check_compare
from r1.recipe.parts import build_sampling
from r1.rollout.advantage import AdvantageEstimator
from r1.schema import TrainConfig
from r1.settings import settings
from r1.stage import build_trainer

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
EXPERIMENTS = sorted(p.stem for p in (CONFIGS / "experiment").glob("*.yaml"))
OPTIONS = sorted(f"{p.parent.name}={p.stem}" for p in CONFIGS.glob("*/*.yaml") if p.parent.name != "experiment")
# Groups that another entry point than r1.train reads.
ENTRY = {
    "verifier": "diagnose",
    "benchmarks": "evaluate",
    "claims": "claims",
    "pipeline": "pipeline",
    "rewrite": "sample",
}
LOSSES = sorted(p.stem for p in (CONFIGS / "loss").glob("*.yaml"))
MODULES = {
    "grpo": GRPOModule,
    "sft": SFTModule,
    "distill": DistillModule,
    "on_policy": GRPOModule,
    "reward_model": RewardModelModule,
}
# Stands in for weights and data that are not part of the project.
TINY = {"name": "tiny_llama", "hidden_size": 16, "num_heads": 2, "num_layers": 1, "intermediate_size": 16}
DATA = ROOT / "tests" / "data" / "gsm8k_10.jsonl"


def built(config):
    """Assemble a config on a tiny model and, for the hub, on a task that is here."""
    changes = {"evaluation": config["evaluation"] | {"num_problems": 1}}
    if config["task"]["name"] == "hub" or "hub" in [t.get("name") for t in config["task"].get("tasks", {}).values()]:
        changes["task"] = {"name": "chain"}
    if config["reference"].get("kind") == "adapter_disabled":
        changes["reference"] = {"kind": "frozen"}
    if config["teacher"].get("name") != "none":
        changes["teacher"] = TINY
    return assemble(config | changes, model=TINY)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_resolves_and_assembles(experiment, tmp_path):
    overrides = [f"experiment={experiment}", f"output_dir={tmp_path}", f"data_path={DATA}", "trainer.accelerator=cpu"]
    composed = compose_config([*overrides, "trainer.devices=1", "trainer.num_nodes=1", "logger=none"])
    traces = tmp_path / "traces.jsonl"
    traces.write_text('{"prompt": "1A+1:", "completion": "<answer>2</answer>"}\n' * 64)
    for key in OmegaConf.missing_keys(composed):
        OmegaConf.update(composed, key, str(traces) if key.startswith("algorithm.data.") else "given")
    config = plain(composed)
    module, data = built(config)
    assert type(module) is MODULES[config["algorithm"]["name"]]
    assert (data is None) == (config["algorithm"]["name"] not in ("sft", "reward_model"))
    trainer = build_trainer(config | {"trainer": config["trainer"] | {"precision": "32-true"}}, module)
    assert trainer.max_steps == config["trainer"]["max_steps"]
    if data is None:
        loader = module.steps if isinstance(module, DistillModule) else module.loader
        assert trainer.accumulate_grad_batches == loader.accumulation >= 1


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_opens_with_the_command_that_runs_it(experiment):
    head = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().split("defaults:")[0]
    assert head.startswith("# @package _global_\n")
    assert f"python -m r1.train experiment={experiment}" in head


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_with_the_default_experiment(option):
    group = option.split("=")[0]
    entry = ENTRY.get(group, "train")
    composed = compose_config(
        [option, "output_dir=out", *([f"data_path={DATA}"] if entry == "train" else [])], name=entry
    )
    for key in OmegaConf.missing_keys(composed):  # the path of a model, the address of a server
        OmegaConf.update(composed, key, "given")
    config = plain(composed)
    key = {"debug": "trainer", "benchmarks": "benchmark"}.get(group, group)  # these merge into other keys
    assert isinstance(config[key], dict)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_says_what_it_is(option):
    path = CONFIGS / f"{option.replace('=', '/')}.yaml"
    text = path.read_text()
    trivial = path.stem in ("none", "default", "ddp") or path.parent.name == "algorithm" or path.stem == "tensorboard"
    assert text.startswith("#") or trivial, path


BUILDABLE = [o for o in OPTIONS if o.split("=")[0] in ("loss", "reference", "reward", "prompt", "rollout", "model")]


@pytest.mark.parametrize("option", BUILDABLE)
def test_every_option_builds_with_the_default_experiment(option):
    overrides = [option, "output_dir=out", "init_from=null", f"data_path={DATA}"]
    composed = compose_config([*overrides, *(["reference=frozen"] if option.startswith("loss=") else [])])
    missing = OmegaConf.missing_keys(composed)
    if missing - {"model.path"}:  # the model is replaced by a tiny one
        pytest.skip(f"needs {', '.join(missing)}")
    for key in missing:
        OmegaConf.update(composed, key, "given")
    module, _ = built(plain(composed))
    assert isinstance(module, GRPOModule)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_builds_its_objective_and_its_advantages(loss):
    node = plain(compose_config([f"loss={loss}", "output_dir=out", "~experiment"]))["loss"]
    advantage = node.pop("advantage")
    objective = settings(PolicyObjective, node, "loss")
    assert objective.clip_range()[1] > 0
    AdvantageEstimator(advantage.pop("name"), weights={"accuracy": 1.0}, **advantage)


def test_callbacks_and_loggers_build(tmp_path):
    config = plain(compose_config([f"output_dir={tmp_path}"]))
    assert set(instantiate_all(config["callbacks"])) == set(config["callbacks"])
    assert set(instantiate_all(config["logger"])) == {"tensorboard"}
    assert instantiate_all({"gone": None}) == {}


def test_the_top_level_of_the_config_is_the_schema():
    keys = set(OmegaConf.to_container(compose_config([]), resolve=False))
    assert keys == set(TrainConfig.__dataclass_fields__)


# ----------------------------------------------------------------------------------------------- misspelled keys


def compose_experiment(tmp_path, monkeypatch, text):
    """Compose a user's own experiment from a folder of theirs."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    monkeypatch.setenv("R1_CONFIG_DIR", f"file://{tmp_path}")
    return compose_config(["experiment=mine", "output_dir=out", "init_from=null"])


def test_a_user_s_experiment_is_found_in_their_own_folder(tmp_path, monkeypatch):
    config = compose_experiment(tmp_path, monkeypatch, "trainer: {max_steps: 3}")
    assert config.trainer.max_steps == 3


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("trianer: {max_steps: 3}", "trianer"),
        ("seeds: 3", "seeds"),
        ("callback: {}", "callback"),
    ],
)
def test_a_misspelled_key_at_the_top_of_an_experiment_is_named(tmp_path, monkeypatch, text, key):
    with pytest.raises(HydraException) as caught:
        compose_experiment(tmp_path, monkeypatch, text)
    messages = [str(caught.value), str(caught.value.__cause__)]
    assert any(key in message for message in messages), messages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("algorithm: {plam: {num_prompts: 2}}", r"algorithm.plam: no such key. Did you mean 'plan'"),
        ("algorithm: {plan: {num_promts: 2}}", r"algorithm.plan.num_promts: no such key. Did you mean 'num_prompts'"),
        ("algorithm: {plan: {num_prompts: two}}", r"algorithm.plan.num_prompts: found 'two', expected int"),
        ("algorithm: {optimizer: {learning_rate: 1}}", r"algorithm.optimizer.learning_rate: no such key"),
        ("loss: {clip_low: 0.1}", r"loss.clip_low: no such key"),
        ("loss: {options: {clip_hgh: 0.1}}", r"loss.options.clip_hgh: no such option. Did you mean 'clip_high'"),
        ("loss: {advantage: {name: grup}}", r"loss.advantage.name: found 'grup'. Did you mean 'group'"),
        ("loss: {advantage: {epsilon: 1}}", r"loss.advantage.epsilon: no such option"),
        ("rollout: {max_batchsize: 1}", r"takes no argument 'max_batchsize'. Did you mean 'max_batch_size'"),
        ("rollout: {sampling: {temprature: 1}}", r"rollout.sampling.temprature: no such key. Did you mean 'temperat"),
        ("evaluation: {num_problem: 2}", r"evaluation.num_problem: no such key. Did you mean 'num_problems'"),
        ("task: {min_op: 2}", r"task 'chain' takes no argument 'min_op'. Did you mean 'min_ops'"),
        ("task: {name: chian}", r"unknown task 'chian'. Did you mean 'chain'"),
        ("prompt: {prefil: x}", r"'plain' takes no argument 'prefil'. Did you mean 'prefill'"),
        ("reward: {accuracy: {wieght: 1}}", r"takes no argument 'wieght'"),
        ("reward: {acuracy: {weight: 1}}", r"unknown reward 'acuracy'. Did you mean 'accuracy'"),
        ("reference: {kind: moving, evry: 3}", r"reference.evry: no such key. Did you mean 'every'"),
        ("reference: {kind: moving}", r"reference 'moving' needs 'every'"),
        ("loss: {kl_coef: 0.1}", r"a KL term needs a reference policy"),
        ("algorithm: {optimizer: {betas: 0.9}}", r"algorithm.optimizer.betas: found 0.9, expected tuple"),
        ("algorithm: {optimizer: {betas: [0.9]}}", r"algorithm.optimizer.betas: found \[0.9\], expected tuple"),
        ("algorithm: {optimizer: {lr: -1}}", r"algorithm.optimizer.lr must be at least 0, found -1"),
        ("loss: {options: 3}", r"loss.options: found 3, expected Mapping"),
        ("loss: {options: {clip_low: abc}}", r"loss.options.clip_low: found 'abc', expected float"),
        ("loss: {advantage: null}", r"loss.advantage: found None"),
        ("prompt: {prefill: 5}", r"prompt.prefill: prompt template 'plain': found 5, expected str"),
        ("reward: {accuracy: {name: format, thinking: 3}}", r"reward.accuracy.thinking: .* found 3, expected bool"),
        ("task: {name: jsonl, min_ops: null}", r"task.min_ops: task 'jsonl' takes no argument 'min_ops'"),
        ("evaluation: {num_problems: -5}", r"evaluation.num_problems must be at least 0, found -5"),
        ("loss: {kl: k9}", r"loss.kl: found 'k9'"),
        ("loss: {options: {clip_low: -1}}", r"loss.options.clip_low: found -1"),
        ("loss: {mismatch: tok}", r"loss.mismatch: found 'tok'"),
        ("loss: {advantage: {ddof: 3}}", r"loss.advantage.ddof: found 3"),
        ("algorithm: {log_entropy: 3}", r"algorithm.log_entropy: found 3, expected bool"),
        ("algorithm: {plan: null}", r"algorithm.plan: found None, expected Mapping"),
        ("rollout: {sampling: {stop: 5}}", r"rollout.sampling.stop: found 5, expected tuple"),
        ("reference: {kind: moving, every: 0}", r"reference.every must be at least 1"),
        ("reference: {kind: mixed, every: 4, alpha: 3}", r"reference.alpha must be in"),
    ],
)
def test_a_misspelled_key_inside_a_group_is_named(tmp_path, monkeypatch, text, message):
    config = plain(compose_experiment(tmp_path, monkeypatch, text))
    with pytest.raises(ValueError, match=message):
        assemble(config, model=TINY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compare: {num_problem: 2}", "compare.num_problem: no such key. Did you mean 'num_problems'"),
        ("compare: {rows: {a: {experimnt: x}}}", "compare.rows.a.experimnt: no such key. Did you mean 'experiment'"),
    ],
)
def test_a_misspelled_comparison_is_refused_before_the_training(tmp_path, monkeypatch, text, message):
    config = plain(compose_experiment(tmp_path, monkeypatch, text))
    with pytest.raises(ValueError, match=message):
        check_compare({"num_problems": 1, "rows": {"a": {"final": True}}} | config["compare"])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_comparison_of_every_experiment_has_known_keys(experiment):
    check_compare(OmegaConf.to_container(compose_config([f"experiment={experiment}"]), resolve=False)["compare"])


def test_a_missing_value_is_asked_for_by_key():
    with pytest.raises(ValueError, match=r"model.path: must be given, for example model.path="):
        plain(compose_config(["model=pretrained", "output_dir=out"]))


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("algorithm.plan.num_promts=2", "num_promts: no such key. Did you mean 'algorithm.plan.num_prompts'"),
        ("traner.max_steps=2", "traner.max_steps: no such key. Did you mean 'trainer.max_steps'"),
        ("reward.acuracy.weight=2", "reward.acuracy.weight: no such key. Did you mean 'reward.accuracy.weight'"),
        ("sed=2", "sed: no such key. Did you mean 'seed'"),
        ("algorithm.num_prompts=2", "algorithm.num_prompts: no such key. Did you mean 'algorithm.plan.num_prompts'"),
        ("max_steps=2", "max_steps: no such key. Did you mean 'trainer.max_steps'"),
    ],
)  # fmt: skip
def test_a_misspelled_override_gets_the_nearest_key(override, hint):
    assert hint in explain_overrides(["experiment=demo_grpo", override, "seed=1"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm=sft", "algorithm.data.batch_size=16"],  # a key of that choice of a group
        ["loss=sapo", "loss.options.tau_pos=1.0"],
        ["loss.options.delta=3"],  # keys that can be added, as Hydra says
        ["loss.advantage.ddof=0"],
        ["algorithm.optimizer.eps=1e-7"],
        ["+callbacks.p={_target_: my.Callback}"],
        ["+reward.acuracy={weight: 1}"],
    ],
)
def test_a_key_that_is_right_or_can_be_added_is_not_called_wrong(overrides):
    assert explain_overrides(overrides) == ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward=null", "reward: found null, expected the name of a config: all, general, language, r1,"),
        ("callbacks=", "callbacks: found nothing, expected the name of a config: default, none; callbacks=none is"),
        ("loss=3", "loss: found 3, expected the name of a config: bnpo, cispo, dapo,"),
    ],
)
def test_a_group_set_to_what_is_no_choice_lists_its_choices(override, message):
    assert explain_choices(["experiment=demo_grpo", override]).startswith(message)


def test_choices_sweeps_and_other_keys_are_left_to_hydra():
    right = [
        "loss=dapo",
        "loss=grpo,dr_grpo",
        "seed=3",
        "init_from=null",
        "rollout.url=null",
        "+x={a: 1}",
        "--cfg",
        "job",
    ]
    assert explain_choices(right) == ""


@pytest.mark.parametrize("name", ["sft", "distill", "reward_model"])
def test_an_algorithm_without_rollouts_beside_an_experiment_that_plans_them_is_told_of_its_own(name):
    config = plain(compose_config([f"algorithm={name}", "output_dir=out"]))
    with pytest.raises(ValueError, match=f"algorithm.plan: .* experiment=demo_{name}$"):
        assemble(config, model=TINY)
    assert f"demo_{name}" in EXPERIMENTS


def test_the_correction_advised_for_stale_rollouts_can_be_given_as_it_is_written():
    overrides = ["rollout=vllm", "algorithm.plan.max_staleness=1", "output_dir=out"]
    with pytest.raises(ValueError, match="leaves the age") as caught:
        assemble(plain(compose_config([*overrides, "++loss.mismatch=null"])), model=TINY)
    advice = str(caught.value).split()[-1]
    assert plain(compose_config([*overrides, advice]))["loss"]["mismatch"] == "token_truncate"


def test_overrides_that_exist_get_no_hint():
    assert explain_overrides(["experiment=demo_grpo", "loss=dapo", "debug=fast", "+reward.repetition={}"]) == ""
    assert explain_overrides(["--cfg", "job", "hydra.run.dir=x"]) == ""


@pytest.mark.parametrize(
    ("written", "stop"),
    [("'</answer>'", ("</answer>",)), ("['</answer>',x]", ("</answer>", "x")), ("null", ()), ("[]", ())],
)
def test_a_single_stop_string_need_not_be_a_list(written, stop):
    config = plain(compose_config([f"rollout.sampling.stop={written}"]))
    assert build_sampling(config).stop == stop

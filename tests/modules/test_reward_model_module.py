"""A reward model under a real Lightning Trainer on the CPU."""

import math

import lightning as L
import pytest
import torch

from r1.callbacks.checkpoint import RunCheckpoint
from r1.config import compose_config, plain
from r1.data.preferences import PreferenceDataModule, PreferencePair, read_preferences
from r1.models import MODELS, RewardModel, tiny_llama
from r1.modules.reward_model import RewardModelModule
from r1.recipe.assemble import assemble
from r1.rewards import extract_answer
from r1.tasks import TASKS

SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}


def pairs_of(num):
    """The text with an exclamation mark is preferred; `other` pairs are about a full stop."""
    marks = {"!": "loud", ".": "quiet"}
    return [
        PreferencePair(prompt=f"{i}:", chosen=f"a{i % 7}{mark}", rejected=f"a{i % 7}", source=source)
        for i in range(num)
        for mark, source in marks.items()
    ]


def fit(tmp_path, pairs, *, max_steps, ckpt_path=None, callbacks=(), held_out=0.2):
    model = RewardModel.from_policy(tiny_llama(**SIZES))
    data = PreferenceDataModule(
        lambda device: pairs, encode=model.encode, pad_id=model.pad_token_id, batch_size=8, held_out=held_out, seed=3
    )
    module = RewardModelModule(reward_model=model, data=data, optimizer={"lr": 1e-2})
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=max_steps, max_epochs=-1, num_sanity_val_steps=0, logger=False,
        callbacks=list(callbacks), log_every_n_steps=1, enable_checkpointing=bool(callbacks),
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module, trainer


class First(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0 and trainer.global_step == 1:
            self.loss = float(trainer.callback_metrics["train/loss"])


def test_it_learns_a_preference_and_says_how_well_by_source(tmp_path):
    first = First()
    _, trainer = fit(tmp_path, pairs_of(60), max_steps=36, callbacks=[first, RunCheckpoint()])
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert first.loss == pytest.approx(math.log(2))  # a head of zeros is undecided
    assert metrics["train/loss"] < 0.3
    assert metrics["eval/pair_accuracy"] > 0.9
    assert metrics["eval/pair_accuracy_low"] <= metrics["eval/pair_accuracy"] <= metrics["eval/pair_accuracy_high"]
    loud, quiet = metrics["eval/pair_accuracy/loud"], metrics["eval/pair_accuracy/quiet"]
    # As many pairs of either source for every question.
    assert (loud + quiet) / 2 == pytest.approx(metrics["eval/pair_accuracy"])
    assert metrics["eval/num_pairs"] % 2 == 0 and 0 < metrics["eval/num_pairs"] < 120


def test_the_scores_of_the_training_texts_are_normalised_at_the_end(tmp_path):
    module, _ = fit(tmp_path, pairs_of(20), max_steps=5)
    pairs = module.data.pairs
    questions = [pair.prompt for pair in pairs for _ in range(2)]
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    scores = torch.tensor(module.policy.score(questions, texts, normalize=True), dtype=torch.float64)
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std(correction=0).item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("step", [3, 5])
def test_a_resumed_run_ends_bit_for_bit_where_the_unbroken_one_does(tmp_path, step):
    checkpoints = {"callbacks": [RunCheckpoint(every_n_steps=1, keep=10)]}
    whole, _ = fit(tmp_path / "whole", pairs_of(20), max_steps=8, **checkpoints)
    path = tmp_path / "whole" / "checkpoints" / f"step_{step:08d}.ckpt"
    checkpoints = {"callbacks": [RunCheckpoint(every_n_steps=1, keep=10)]}
    resumed, _ = fit(tmp_path / "resumed", pairs_of(20), max_steps=8, ckpt_path=path, **checkpoints)
    assert resumed.policy.fingerprint() == whole.policy.fingerprint()
    assert resumed.policy.mean == whole.policy.mean != 0


def test_too_few_completions_to_compare_is_an_error_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match="no preference pair to train on"):
        fit(tmp_path, [], max_steps=1)


# ---------------------------------------------------------------------------------------------------- from a config


def run(tmp_path, *overrides):
    overrides = [
        "experiment=demo_reward_model", "task=chain", "algorithm.data.style=null", f"output_dir={tmp_path}",
        "init_from=null", "trainer.max_steps=2",
        "algorithm.data.num_problems=16", "algorithm.data.batch_size=4", "rollout.sampling.num_generations=4",
        "rollout.sampling.max_tokens=6", *overrides,
    ]  # fmt: skip
    config = plain(compose_config(overrides))
    module, data = assemble(config, model={"name": "tiny_llama", "initializer_range": 0.2, **SIZES})
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, max_epochs=-1, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


def even_length(completions, problems):
    """Stands in for a verifier: an untrained model is right about nothing."""
    return [float(len(c.text) % 2) for c in completions]


even_length.isolated = False


def test_pairs_are_the_model_s_own_completions_told_apart_by_the_rewards(tmp_path):
    odd = f"+reward.odd={{name: {__name__}.even_length}}"
    module = run(tmp_path, odd, "algorithm.data.by=[odd]", "algorithm.part=response")
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    assert len(module.data.pairs) + len(module.data.held_out_pairs) == len(pairs) > 8
    assert all(pair.source == "odd" and pair.problem.task == "chain" for pair in pairs)
    folder = module.policy.save(tmp_path / "model")
    loaded = MODELS.build("reward_model", path=folder)
    assert loaded.reading.part == "response" and loaded.reading.prompt["name"] == "plain"


def test_the_task_s_demonstrations_can_stand_for_completions(tmp_path):
    module = run(tmp_path, "task=mixture", "algorithm.data.style=noisy_mixture", "algorithm.data.num_problems=40")
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    assert {p.kind for p in pairs} >= {"accuracy/chain", "accuracy/general", "summary_format/general"}
    task = TASKS.build("mixture", tasks={"chain": {"share": 3}, "general": {"share": 1}})
    for pair in (p for p in pairs if p.source == "accuracy"):
        chosen, rejected = (extract_answer(text) or "" for text in (pair.chosen, pair.rejected))
        assert (task.verify(pair.problem, chosen), task.verify(pair.problem, rejected)) == (1.0, 0.0)
    assert all("<think>" not in p.chosen + p.rejected for p in pairs)
    again = run(
        tmp_path / "again", "task=mixture", "algorithm.data.style=noisy_mixture", "algorithm.data.num_problems=40"
    )
    assert again.data.pairs == module.data.pairs


def test_a_resumed_run_reads_the_pairs_it_has_drawn(tmp_path):
    odd = f"+reward.odd={{name: {__name__}.even_length}}"
    first = run(tmp_path, odd, "algorithm.data.by=[odd]", "algorithm.part=response")
    kept = read_preferences(tmp_path / "pairs.jsonl")[:9]
    (tmp_path / "pairs.jsonl").write_text("".join((tmp_path / "pairs.jsonl").read_text().splitlines(keepends=True)[:9]))
    again = run(tmp_path, odd, "algorithm.data.by=[odd]", "algorithm.part=response", "resume=true")
    assert len(again.data.pairs) + len(again.data.held_out_pairs) == len(kept) < len(first.data.pairs)


def test_pairs_of_a_file_are_used_as_they_are(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 4)
    module = run(tmp_path, f"algorithm.data.path={path}", "algorithm.data.held_out=0.0")
    assert [(p.chosen, p.rejected) for p in module.data.pairs] == [("a", "b")] * 4
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+algorithm.data.num_problem=2", r"algorithm.data.num_problem: no such key. Did you mean 'num_problems'"),
        ("algorithm.part=answer", r"part='answer'. Parts: summary, response"),
        ("algorithm.data.held_out=1.0", r"held_out must be in \[0, 1\), found 1"),
        ("algorithm.data.by=[acuracy]", r"no reward 'acuracy'. Did you mean 'accuracy'"),
    ],
)
def test_a_mistake_in_the_config_is_named(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, override)

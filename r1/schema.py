"""The keys a run may have: a misspelled key is an error in a YAML file as well as on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class TrainConfig:
    """Top level of a training config. Groups are free mappings here; what they build checks their keys.

    Attributes:
        seed: of everything: initial weights, problems, completions, shuffles.
        output_dir: run directory; the Hydra run directory when null.
        cache_dir: where stages that a run starts from are kept and reused.
        num_threads: threads of a process on the CPU (null: torch decides); results depend on it in the last bits.
        resume: continue from the last checkpoint in the run directory, if there is one.
        ckpt_path: continue from this checkpoint.
        init_from: directory of a saved model to start from, or {experiment: name, overrides: [...]} of a stage that
            makes it (trained when it is not in the cache yet); null builds a fresh `model`.
        teacher: for distillation, {name: pretrained, path: ...}, or {experiment: name, overrides: [...]} of a stage
            that makes it, like init_from.
        save_model: write the final policy as a transformers directory `model/`.
        data_path: a data file, for experiments that read one.
        decontaminate: benchmark files with which no training problem of a task from a file or the hub may overlap.
        compare: what the closing table compares, or null.
    """

    seed: int = 0
    output_dir: str | None = None
    cache_dir: str = "runs/cache"
    num_threads: int | None = None
    resume: bool = False
    ckpt_path: str | None = None
    init_from: Any = None
    save_model: bool = True
    data_path: str | None = None
    decontaminate: list[str] = field(default_factory=list)
    algorithm: Any = field(default_factory=dict)
    loss: Any = field(default_factory=dict)
    model: Any = field(default_factory=dict)
    reference: Any = field(default_factory=dict)
    teacher: Any = field(default_factory=dict)
    task: Any = field(default_factory=dict)
    reward: Any = field(default_factory=dict)
    prompt: Any = field(default_factory=dict)
    rollout: Any = field(default_factory=dict)
    evaluation: Any = field(default_factory=dict)
    trainer: Any = field(default_factory=dict)
    strategy: Any = field(default_factory=dict)
    callbacks: Any = field(default_factory=dict)
    logger: Any = field(default_factory=dict)
    compare: Any = None


@dataclass
class ModelConfig:
    """What every command that samples from a model shares.

    Attributes:
        model: config of the model. On the command line `model=x` means `model.path=x`: the folder of a saved model or
            of a run, or a name on the hub; with rollout=remote, its name at the endpoint.
        tokenizer: folder or name of a tokenizer whose chat template renders the prompts of a remote model.
        device: to sample on; null is CUDA where there is one.
        seed: of problems and completions.
        num_threads: threads on the CPU (null: torch decides); results depend on it in the last bits.
    """

    model: Any = field(default_factory=dict)
    tokenizer: str | None = None
    device: str | None = None
    seed: int = 0
    num_threads: int | None = None
    task: Any = field(default_factory=dict)
    prompt: Any = field(default_factory=dict)
    rollout: Any = field(default_factory=dict)


@dataclass
class ModelRunConfig(ModelConfig):
    """What `r1.sample`, `r1.evaluate` and `r1.diagnose` share: problems besides, and how completions are drawn.

    Attributes:
        output_dir: run directory; the Hydra run directory when null.
        data_path: a data file, for tasks that read one.
        num_problems: problems asked, each once.
        split: they come from.
        temperature, top_p, max_tokens: of sampling.
    """

    output_dir: str | None = None
    data_path: str | None = None
    num_problems: int = 100
    split: str = "train"
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    reward: Any = field(default_factory=dict)


@dataclass
class SampleConfig(ModelRunConfig):
    """Top level of `r1.sample`.

    Attributes:
        k: completions of each problem.
        out: trace file (.jsonl); traces.jsonl in the run directory when null. Shards and manifest stand beside it.
        all_out: file for all completions, those that a filter refused included, or null.
        rewrite: phrase -> replacement in the completions, before they are scored and filtered.
        filters: see `r1.recipe.rejection.RejectionSettings`.
        keep_per_problem: most completions kept of one problem, or null.
        decontaminate: benchmark files that no trace may overlap.
        decontamination: ngram_size, and unit ("word" or "token").
        shard_size: problems whose completions are written at once.
        keep_shards: keep the raw completions, so that the same command with other filters samples nothing anew.
    """

    k: int = 8
    out: str | None = None
    all_out: str | None = None
    rewrite: Any = field(default_factory=dict)
    filters: Any = field(default_factory=dict)
    keep_per_problem: int | None = None
    decontaminate: list[str] = field(default_factory=list)
    decontamination: Any = field(default_factory=dict)
    shard_size: int = 16
    keep_shards: bool = True


@dataclass
class EvaluateConfig(ModelRunConfig):
    """Top level of `r1.evaluate`.

    Attributes:
        num_problems: problems asked; null is all of a benchmark, 200 of a generated one. `limit` does the same.
        num_samples: completions of each problem (null: each benchmark's own number); above 1, pass@k and cons@k are
            reported too. `k` does the same.
        few_shot: path (a trace file, or null), k, question, answer, prefill: examples in the prompt.
        benchmark: name -> `r1.evaluation.benchmarks.BenchmarkSettings`; empty evaluates `task`.
        data_dir: folder with the files of benchmarks, at any depth; null takes them from the hub.
        baseline: folder of another evaluation on the same benchmarks or task, for the paired difference.
        rescore: folder of an evaluation whose samples are judged again; nothing is sampled.
        contamination: JSONL file that is searched for the benchmarks' texts; nothing is sampled.
        ngram_size: words in a row that count as contamination.
    """

    num_problems: int | None = 200
    num_samples: int | None = 1
    few_shot: Any = field(default_factory=dict)
    benchmark: Any = field(default_factory=dict)
    data_dir: str | None = None
    baseline: str | None = None
    rescore: str | None = None
    contamination: str | None = None
    ngram_size: int = 10


@dataclass
class DiagnoseConfig(ModelRunConfig):
    """Top level of `r1.diagnose`.

    Attributes:
        num_samples: completions of each problem, of which the wrong ones are looked into.
        num_tries: completions that each arm draws for a wrong one.
        budget: new tokens that each arm may spend on a wrong one; null is max_tokens, what a single try may take.
        retry: what the user says to a wrong turn, where the prompt has turns.
        hint: the same, naming the step: slots {number} and {step}.
        verifier: who judges steps, where the task does not: text, judge, or a dotted path with its arguments.
        rollouts: saved rollouts to diagnose instead of a model: a run directory, its rollouts folder, or a file.
        benchmark: labelled chains to judge instead: files `<benchmark>_<subset>.jsonl`.
        data_dir: their folder.
        half: all, even or odd rows of them.
        limit: chains of each of those files; null is all.
    """

    verifier: Any = field(default_factory=dict)
    rollouts: str | None = None
    benchmark: str | None = None
    data_dir: str | None = None
    half: str = "all"
    limit: int | None = None
    num_samples: int = 1
    num_tries: int = 8
    budget: int | None = None
    retry: str = ""
    hint: str = ""


@dataclass
class ChatConfig(ModelConfig):
    """Top level of `r1.chat`.

    Attributes:
        prompt: template; that of the run that made the model when empty, else the tokenizer's chat template.
        task: for `check`; that of the run that made the model when empty.
        rollout: local or transformers.
        question: asked instead of reading standard input; a list is a conversation.
        show_thinking: write the thinking out instead of folding it.
        check: mark the wrong steps of each turn, with the task's step checker or that of free text.
        think: budget of the thinking (`r1.rollout.stream.ThinkBudget`).
        context: most tokens of a conversation.
        temperature, top_p, max_tokens: of sampling.
        out: file to which each turn is appended as a line of JSON, or null.
    """

    question: Any = None
    show_thinking: bool = False
    check: bool = False
    think: Any = field(default_factory=dict)
    context: int = 8192
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 4096
    out: str | None = None


@dataclass
class ExportConfig:
    """Top level of `r1.export`.

    Attributes:
        model: as in `ModelConfig`.
        out: directory to make.
        formats: of transformers, gguf and ollama (which takes gguf along).
        gguf_dtype: of the matrices in the GGUF file: auto (as stored), float32, float16, bfloat16 or q8_0.
        prompt: that the chat template shall write; that of the run that made the model when empty, else the
            tokenizer's own chat template.
        temperature, top_p: written into the generation config and the Modelfile.
        title: of the model card and in the GGUF file; the name of `out` when null.
    """

    model: Any = field(default_factory=dict)
    out: str = MISSING
    formats: list[str] = field(default_factory=lambda: ["transformers"])
    gguf_dtype: str = "auto"
    prompt: Any = field(default_factory=dict)
    temperature: float = 0.6
    top_p: float = 0.95
    title: str | None = None


@dataclass
class PipelineConfig:
    """Top level of `r1.pipeline`.

    Attributes:
        seed: of every stage.
        num_threads: threads of a process on the CPU.
        output_dir: run directory, a folder for each stage in it; the Hydra run directory when null.
        pipeline: name, stages (names to run, null for all), plan (check all, run nothing) and definitions
            (`r1.recipe.pipeline.Stage`).
    """

    seed: int = 0
    num_threads: int | None = None
    output_dir: str | None = None
    pipeline: Any = field(default_factory=dict)


@dataclass
class ClaimsConfig:
    """Top level of `r1.claims`.

    Attributes:
        evaluations: label -> `evaluation.json`.
        runs: instead of it, folders of finished pipelines that differ in their seed.
        claims: command, and claims by label (`r1.recipe.claims.put_to_test`).
        seed, num_threads: taken from the pipeline; nothing here depends on them.
    """

    seed: int = 0
    num_threads: int | None = None
    output_dir: str | None = None
    evaluations: dict[str, Any] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    claims: Any = field(default_factory=dict)


ConfigStore.instance().store(name="pipeline_schema", node=PipelineConfig, provider="r1")
ConfigStore.instance().store(name="claims_schema", node=ClaimsConfig, provider="r1")
ConfigStore.instance().store(name="train_schema", node=TrainConfig, provider="r1")
ConfigStore.instance().store(name="sample_schema", node=SampleConfig, provider="r1")
ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig, provider="r1")
ConfigStore.instance().store(name="diagnose_schema", node=DiagnoseConfig, provider="r1")
ConfigStore.instance().store(name="chat_schema", node=ChatConfig, provider="r1")
ConfigStore.instance().store(name="export_schema", node=ExportConfig, provider="r1")

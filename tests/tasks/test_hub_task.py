from pathlib import Path

import pytest

from r1.tasks import TASKS

datasets = pytest.importorskip("datasets")

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def rows():
    return datasets.Dataset.from_list([{"question": f"What is {i}+1?", "answer": f"#### {i + 1}"} for i in range(60)])


def test_a_data_set_saved_on_disk_is_split_by_hash(tmp_path, rows):
    rows.save_to_disk(tmp_path / "sums")
    task = TASKS.build("hub", path=str(tmp_path / "sums"))
    assert task.name == "sums" and task.isolated
    assert task.num_problems("train") + task.num_problems("test") == 60
    problem = task.problems("train").take(1)[0]
    assert problem.prompt == f"What is {int(problem.answer) - 1}+1?"
    assert task.verify(problem, problem.answer) == 1.0


def test_a_test_split_of_its_own_is_used(tmp_path, rows):
    parts = datasets.DatasetDict({"train": rows.select(range(50)), "validation": rows.select(range(45, 60))})
    parts.save_to_disk(tmp_path / "sums")
    task = TASKS.build("hub", path=str(tmp_path / "sums"), test_split="validation", label="s")
    assert (task.num_problems("train"), task.num_problems("test"), task.num_overlapping) == (45, 15, 5)
    with pytest.raises(ValueError, match=r"no split 'validaton' \(test_split\). Did you mean 'validation'"):
        TASKS.build("hub", path=str(tmp_path / "sums"), test_split="validaton")


def test_parquet_files_load_with_the_columns_of_the_file(tmp_path, rows, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "sums.parquet"
    rows.rename_column("question", "task_text").to_parquet(path)
    kwargs = {"path": "parquet", "data_files": str(path), "shares": {"train": 1.0}}
    with pytest.raises(ValueError, match="set prompt_key to one of those found: task_text, answer"):
        TASKS.build("hub", **kwargs)
    task = TASKS.build("hub", **kwargs, prompt_key="task_text")
    assert [p.answer for p in task.rows("train")[:3]] == ["1", "2", "3"]

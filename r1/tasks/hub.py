"""Problems from a data set of the Hugging Face hub, or one saved on disk, through `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1.registry import did_you_mean
from r1.tasks.base import TASKS
from r1.tasks.text import TextTask
from r1.types import Problem


@TASKS.register("hub")
class HubTask(TextTask):
    """A hub data set, split by hash, or with a test set of its own in `test_split`.

    Args:
        path: name on the hub, a loader ("json", "parquet" with `data_files`), or a folder written by `save_to_disk`.
        subset: the data set's configuration, such as "main".
        data_files: files for a loader, as `datasets.load_dataset` takes them.
        train_split, test_split: splits of the data set; without test_split the test problems are hashed out of
            train_split.
        prompt_key, answer_key: columns; by default the first of the usual names that is there.
        label: what logs call the task; by default the last part of `path`.
        shares: of the splits, by default 0.9 train and 0.1 test, or all train with `test_split`.

    Raises:
        ImportError: `datasets` is missing.
        ValueError: no such split or column, or a row without text.
    """

    def __init__(
        self,
        *,
        path: str,
        subset: str | None = None,
        data_files: Any = None,
        train_split: str = "train",
        test_split: str | None = None,
        prompt_key: str | None = None,
        answer_key: str | None = None,
        label: str | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(
            name=label or Path(path).name,
            prompt_key=prompt_key,
            answer_key=answer_key,
            shares=shares,
            has_test_set=test_split is not None,
        )
        self.path = path
        self.subset = subset
        self.data_files = data_files
        self.train_split = train_split
        self.test_split = test_split
        self.rows("train")

    def load(self) -> tuple[list[Problem], list[Problem]]:
        splits = self._open()
        for key, split in (("train_split", self.train_split), ("test_split", self.test_split)):
            if split is not None and split not in splits:
                raise ValueError(
                    f"data set {self.path!r} has no split {split!r} ({key}).{did_you_mean(split, splits)} "
                    f"Splits found: {', '.join(splits)}"
                )
        test = [] if self.test_split is None else self._problems(splits[self.test_split], self.test_split)
        return self._problems(splits[self.train_split], self.train_split), test

    def _open(self) -> Mapping[str, Any]:
        try:
            import datasets
        except ImportError as error:
            raise ImportError("task 'hub' needs datasets: pip install 'r1[hub]'") from error
        folder = Path(self.path)
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(self.path)
        if (folder / "dataset_info.json").is_file():
            return {self.train_split: datasets.load_from_disk(self.path)}
        return datasets.load_dataset(self.path, self.subset, data_files=self.data_files)

    def _problems(self, rows: Any, split: str) -> list[Problem]:
        where = f"data set {self.path!r}, split {split!r}"
        prompt, answer = self.columns_of(list(rows.column_names), where)
        return [self.problem_of(row, prompt, answer, f"{where}, row {i}") for i, row in enumerate(rows)]

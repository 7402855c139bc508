"""A data set around another one."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from detector.protocols import DataSet


class WrappedDataset(Dataset):
    """Another data set with other samples: a subclass has `__getitem__`, all other members are those of `dataset`."""

    def __init__(self, dataset: DataSet) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if "dataset" not in vars(self):  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

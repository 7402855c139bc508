"""What a process knows of itself and the others, without starting any (test_shared_work.py and test_training_processes.py do)."""

import pytest
import torch

from detector import distributed
from detector.device import own_device
from detector.errors import DataError, DetectorError

GPU = torch.device("cuda")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As the second process of torchrun on a machine of two GPUs; the GPUs that were made the default."""
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_a_process_has_a_gpu_to_itself(launched: list[int]):
    assert own_device(GPU) == torch.device("cuda", 1) and launched == [1]
    assert own_device(torch.device("cpu")) == torch.device("cpu") and launched == [1]


def test_more_processes_than_gpus_is_an_error(launched: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DetectorError, match=r"process 3 of this machine has no GPU .* --nproc-per-node 2, or choose"):
        own_device(GPU)


def test_alone_nothing_is_a_case(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")  # of some other launcher
    x = torch.tensor(3.0)
    with distributed.processes(GPU):
        assert (distributed.rank(), distributed.world_size(), distributed.is_rank0()) == (0, 1, True)
        assert own_device(GPU) == GPU and distributed.gather("a") == ["a"]
        assert distributed.all_reduce_mean(x) is x and distributed.all_reduce_max(2, 5) == [2, 5]
        assert [distributed.global_normalizer(count) for count in (0, 7)] == [1, 7]
        assert list(distributed.map_sharded([1, 2, 3], lambda items: [10 * i for i in items])) == [10, 20, 30]


def test_what_all_have_in_common_the_first_one_says(monkeypatch: pytest.MonkeyPatch):
    error = DataError("x")
    monkeypatch.setenv("RANK", "1")
    assert distributed.should_report(error)
    error.__cause__ = distributed.SharedError()
    assert not distributed.should_report(error)
    monkeypatch.setenv("RANK", "0")
    assert distributed.should_report(error)

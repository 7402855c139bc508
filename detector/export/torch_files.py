"""Programs of torch.export."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
import torch._inductor
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler

from detector.errors import ConfigError
from detector.export.card import KEY, Batches, Card
from detector.export.packages import quiet


class TorchFile:
    """A program of torch.export (.pt2), for Python and for compilers that start from it."""

    suffix, runs_code, precisions, takes_sizes = ".pt2", True, ("float32",), True

    def __init__(self, path: Path):
        found = {KEY: ""}
        self.run = torch.export.load(path, extra_files=found).module()
        self.card = Card.loads(found[KEY], path)

    def __call__(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        return list(self.run(images, sizes))

    @staticmethod
    def check(precision: str) -> None:
        """Nothing else must be installed."""

    @staticmethod
    def files(path: Path) -> list[Path]:
        """What `write` makes."""
        return [path]

    @staticmethod
    def write(
        graph: nn.Module, inputs: tuple[Tensor, Tensor], card: Card, path: Path, calibration: Batches = ()
    ) -> None:
        """Trace the graph and save it."""
        with quiet():
            torch.export.save(traced(graph, inputs, card), path, extra_files={KEY: card.dumps()})


class CompiledFile:
    """Native code by AOTInductor (.pt2), for processors with the instructions of the one that made it."""

    suffix, runs_code, precisions, takes_sizes = ".pt2", True, ("float32",), False

    def __init__(self, path: Path):
        self.run = torch._inductor.aoti_load_package(str(path))
        self.card = Card.loads(self.run.get_metadata().get(KEY), path)

    def __call__(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        return list(self.run(images, sizes))

    @staticmethod
    def check(precision: str) -> None:
        """Raise ConfigError without a C++ compiler."""
        try:
            get_cpp_compiler()
        except Exception as error:  # of a type that depends on the version of torch
            raise ConfigError(
                "--to aoti needs a C++ compiler, and none was found: install g++, or name one by the variable CXX"
            ) from error

    @staticmethod
    def files(path: Path) -> list[Path]:
        """What `write` makes."""
        return [path]

    @staticmethod
    def write(
        graph: nn.Module, inputs: tuple[Tensor, Tensor], card: Card, path: Path, calibration: Batches = ()
    ) -> None:
        """Trace the graph and compile it, which takes minutes."""
        program, settings = traced(graph, inputs, card), {"aot_inductor.metadata": {KEY: card.dumps()}}
        with quiet(), torch.no_grad():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def is_compiled(path: Path) -> bool:
    """Whether a file is an archive with native code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/aotinductor/" in f"/{name}" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


@torch.no_grad()
def traced(graph: nn.Module, inputs: tuple[Tensor, Tensor], card: Card) -> torch.export.ExportedProgram:
    """The graph as torch.export sees it. Raises ConfigError if it cannot take several sizes and is asked to."""
    if card.least_size is None:
        with quiet():
            return torch.export.export(graph, inputs, strict=False)
    sides = {
        axis: card.divisor * torch.export.Dim(name, min=least // card.divisor, max=most // card.divisor)
        for axis, name, least, most in zip((2, 3), "hw", card.least_size, card.size)
    }
    try:
        with quiet():
            return torch.export.export(graph, inputs, strict=False, dynamic_shapes=(sides, None))
    except Exception as error:  # of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--dynamic: this detector cannot be traced for several sizes ({reason}); use --size H W"
        ) from error

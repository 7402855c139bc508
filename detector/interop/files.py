"""Files of weights in the formats of other frameworks: reading them runs no code."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector.checkpoint import FORMAT
from detector.errors import CheckpointError
from detector.files import load_tensors, write_atomically, write_beside
from detector.interop.names import first_few

STATE_KEYS = ("state_dict", "model", "blobs")  # of MMDetection, Detectron2 and Caffe2


class Weights(NamedTuple):
    """Content of a file."""

    state: dict[str, Tensor]
    """The state dict."""
    meta: Mapping[str, Any]
    """The whole content where the state dict is one entry of it, else empty."""


def read_weights(path: Path) -> Weights:
    """The state dict in a .pth, .pkl or .safetensors file, bare or as an entry of a framework's checkpoint.

    Raises CheckpointError for a file that is missing, damaged, holds anything but tensors, numbers, strings and containers,
    or is a checkpoint of this project.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        content = _reader(path)(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or foreign file raises any of a dozen kinds
        raise CheckpointError(
            f"{path}: damaged, or not a file of tensors that is safe to read ({_reason(error)})"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: its content is of type {type(content).__name__}, not a state dict")
    if content.get("format") == FORMAT:
        raise CheckpointError(
            f"{path}: is a checkpoint of this project already; --to NAME converts it for another framework"
        )
    state, meta = next(
        ((content[k], content) for k in STATE_KEYS if isinstance(content.get(k), Mapping)), (content, {})
    )
    state = {key: _tensor(value) for key, value in state.items()}
    other = [key for key, value in state.items() if not isinstance(key, str) or value is None]
    if other or not state:
        reason = f"{first_few(other)}: no plain tensors" if other else "it is empty"
        raise CheckpointError(
            f"{path}: holds no state dict ({reason}); save model.state_dict(), bare or under the key 'model'"
        )
    return Weights(_unwrapped(state), meta)


def _reason(error: Exception) -> str:
    """The reason of a failed read on one short line: the class or function that the file refers to, if that is the cause."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named:
        return f"it refers to {named[1]}"
    return first_few([str(error).split(". ")[0].split("\n")[0] or type(error).__name__])


def _tensor(value: object) -> Tensor | None:
    """The value as a dense tensor of real numbers whose data is in the file; None for anything else."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_complex():
        return None
    held = 0 if value.is_meta else value.untyped_storage().nbytes()
    return value.detach() if value.numel() * value.element_size() <= held else None


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the prefixes of DistributedDataParallel, torch.compile or AveragedModel."""
    for wrapper in ("module.", "_orig_mod.", "module."):
        names = state.keys() - {"n_averaged"}
        if names and all(name.startswith(wrapper) for name in names):
            state = {name.removeprefix(wrapper): state[name] for name in state if name in names}
    return state


def _reader(path: Path) -> Callable[[Path], Any]:
    if path.suffix == ".safetensors":
        return _read_safetensors
    return _read_pickle if path.suffix == ".pkl" and not zipfile.is_zipfile(path) else _read_torch


def _read_safetensors(path: Path) -> Any:
    return _safetensors().load_file(path)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError("a .safetensors file needs the package safetensors: pip install safetensors") from error
    return safetensors.torch


def _read_torch(path: Path) -> Any:
    """A file by torch.save; the log histories of MMDetection and the arguments of torchvision become `_Placeholder`."""
    names = ("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "argparse.Namespace")
    placeholders: list[Any] = [(_Placeholder, name) for name in names]
    arrays: list[Any] = [
        (make, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, make in _ARRAYS.items()
    ]
    kinds: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQfd"}]
    with torch.serialization.safe_globals([*placeholders, *arrays, *kinds]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load_tensors(path)
        except zipfile.BadZipFile as error:
            raise CheckpointError(f"{path}: damaged ({error}); copy or download it again") from error


class _Placeholder:
    """Replaces an object that is not needed; it ignores its arguments and its state."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _array(kind: type, shape: tuple[int, ...], code: Any) -> np.ndarray:
    """An empty array, which the pickle fills later. Raises UnpicklingError for a shape: the data would be uninitialised."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f"{kind} of shape {shape} is no empty array")
    return np.ndarray.__new__(np.ndarray, shape, code)


def _scalar(kind: np.dtype, data: bytes | str) -> np.generic:
    if kind.hasobject:
        raise pickle.UnpicklingError("an array of objects")
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, kind, 1)[0]


def _from_buffer(
    buffer: bytes, kind: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"], axes: object = None
) -> np.ndarray:
    """An array in pickle protocol 5."""
    return np.frombuffer(buffer, kind).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes in pickle protocol 2 of Python 3."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


_ARRAYS = {"_reconstruct": _array, "scalar": _scalar}  # of the module multiarray, in core or _core


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays and plain containers; other classes and functions are refused."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of a name. Raises UnpicklingError for any name but these."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in _ARRAYS:
            return _ARRAYS[name]
        known = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("collections", "OrderedDict"): dict,
            ("_codecs", "encode"): _latin1,
            ("numpy._core.numeric", "_frombuffer"): _from_buffer,
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is no array")
        return known[module, name]


def _read_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        return _ArraysOnly(file, encoding="latin1").load()


def write_weights(path: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any], under: str | None) -> None:
    """Write a state dict in the format of its suffix: .safetensors, Detectron2's .pkl of NumPy arrays, else torch.save.

    Raises NotWritten if the file cannot be written.

    Args:
        path: the file.
        state: the tensors.
        meta: other entries of the file; .safetensors has none.
        under: key of the state dict; None writes the state dict bare.
    """
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    if path.suffix == ".safetensors":
        save = _safetensors().save
        write_beside(path, lambda file: file.write(save(state)))
    elif path.suffix == ".pkl":
        content = {"model": {key: tensor.numpy() for key, tensor in state.items()}, **meta}
        write_beside(path, lambda file: pickle.dump(content, file, protocol=4))
    else:
        write_atomically(path, {under: state, **meta} if under else state)

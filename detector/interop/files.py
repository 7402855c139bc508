"""Files of weights in the forms that other frameworks write: read without running what is in them, and written."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector.checkpoint import FORMAT
from detector.errors import CheckpointError
from detector.files import load_tensors, write_atomically, write_beside
from detector.interop.names import some

TENSORS_UNDER = ("state_dict", "model", "blobs")  # MMDetection's, Detectron2's and Caffe2's files


class Weights(NamedTuple):
    """The tensors of a file, and whatever else it says."""

    state: dict[str, Tensor]
    meta: Mapping[str, Any]


def read_weights(path: Path) -> Weights:
    """A .pth, .pkl or .safetensors file of a state dict, bare or within what its framework writes around it.

    Raises CheckpointError for a file that is missing, damaged, holds anything but tensors, numbers, texts and containers,
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
        raise CheckpointError(f"{path}: holds no state dict but {type(content).__name__}")
    if content.get("format") == FORMAT:
        raise CheckpointError(
            f"{path}: is a checkpoint of this project already; --to NAME gives it to another framework"
        )
    state, meta = next(
        ((content[k], content) for k in TENSORS_UNDER if isinstance(content.get(k), Mapping)), (content, {})
    )
    state = {key: _tensor(value) for key, value in state.items()}
    other = [key for key, value in state.items() if not isinstance(key, str) or value is None]
    if other or not state:
        what = f"{some(other)}: no plain tensors" if other else "nothing is in it"
        raise CheckpointError(
            f"{path}: holds no state dict ({what}); save model.state_dict(), bare or under the key 'model'"
        )
    return Weights(_unwrapped(state), meta)


def _reason(error: Exception) -> str:
    """One short line: what it names that is no tensor, if that is the trouble."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it names {named[1]}" if named else some([str(error).split(". ")[0].split("\n")[0] or type(error).__name__])


def _tensor(value: object) -> Tensor | None:
    """A dense tensor of real numbers that the file really holds; None for anything else."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_complex():
        return None
    held = 0 if value.is_meta else value.untyped_storage().nbytes()
    return value.detach() if value.numel() * value.element_size() <= held else None


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what DistributedDataParallel, torch.compile or an average of models put before every name."""
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
    """A file by torch.save. MMDetection's histories of numbers and torchvision's arguments become `_Nothing`."""
    names = ("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "argparse.Namespace")
    nothing: list[Any] = [(_Nothing, name) for name in names]
    arrays: list[Any] = [
        (make, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, make in _ARRAYS.items()
    ]
    kinds: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQfd"}]
    with torch.serialization.safe_globals([*nothing, *arrays, *kinds]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load_tensors(path)
        except zipfile.BadZipFile as error:
            raise CheckpointError(f"{path}: damaged ({error}); copy or download it anew") from error


class _Nothing:
    """Stands for an object that is not wanted, whatever it is made of."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """An empty array, which a pickle then fills; of any other there would be whatever the memory holds."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f"{kind} of shape {shape} is no empty array")
    return np.ndarray.__new__(np.ndarray, shape, code)


def _scalar(kind: np.dtype, data: bytes | str) -> np.generic:
    if kind.hasobject:
        raise pickle.UnpicklingError("an array of objects")
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, kind, 1)[0]


def _from_buffer(buffer: bytes, kind: np.dtype, shape: tuple[int, ...], order: str, axes: object = None) -> np.ndarray:
    """How protocol 5 writes an array."""
    return np.frombuffer(buffer, kind).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle of protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


_ARRAYS = {"_reconstruct": _array, "scalar": _scalar}  # of the module multiarray, in core or _core


class _ArraysOnly(pickle.Unpickler):
    """NumPy arrays and plain containers; nothing that a file names is run."""

    def find_class(self, module: str, name: str) -> Any:
        """The few names that such a file needs."""
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
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
        return known[module, name]


def _read_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        return _ArraysOnly(file, encoding="latin1").load()


def write_weights(path: Path, state: Mapping[str, Tensor], around: Mapping[str, Any], under: str | None) -> None:
    """Write what a framework reads: by the suffix a .pth, Detectron2's .pkl of arrays, or .safetensors, which is bare.

    `under` is the key of the tensors, None for a bare state dict; `around` stands beside it.
    """
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    if path.suffix == ".safetensors":
        save = _safetensors().save
        write_beside(path, lambda file: file.write(save(state)))
    elif path.suffix == ".pkl":
        content = {"model": {key: tensor.numpy() for key, tensor in state.items()}, **around}
        write_beside(path, lambda file: pickle.dump(content, file, protocol=4))
    else:
        write_atomically(path, {under: state, **around} if under else state)

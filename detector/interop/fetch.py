"""Published detectors become checkpoints: fetched into torch.hub's cache, checked, converted once and kept there."""

from __future__ import annotations

import difflib
import hashlib
import http.client
import json
import os
from pathlib import Path

import torch

from detector import __version__
from detector.checkpoint import FORMAT
from detector.config.config import load_config
from detector.errors import CheckpointError
from detector.files import make_folder
from detector.interop.convert import import_weights
from detector.interop.published import PUBLISHED, Published

BLOCK = 2**20  # bytes that are hashed at a time
CACHE_ADVICE = "set TORCH_HOME to a folder of yours"


def is_published(path: str | Path) -> bool:
    """Whether this names a published detector, and no file."""
    return Path(path).as_posix() in PUBLISHED and not os.path.exists(path)


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint at a path, or that of a published detector by its name (keys of PUBLISHED), as "torchvision/...".

    Such a detector is fetched with its first use, and converted again where its file is a newer one or this project's version
    another. Raises CheckpointError for a name that is almost one of them, for a file that does not come, and for one with
    another SHA-256 than the published.
    """
    name = Path(path).as_posix()
    if is_published(path):
        return _converted(name, PUBLISHED[name])
    near = difflib.get_close_matches(name, PUBLISHED, n=1, cutoff=0.8)
    if near and not os.path.exists(path):
        raise CheckpointError(f"{name}: no such checkpoint, and no published detector; did you mean {near[0]}?")
    return Path(path)


def _converted(name: str, model: Published) -> Path:
    """The checkpoint of a published detector; its name depends on all that the conversion depends on."""
    config = load_config(model.config, model.overrides).raw
    key = json.dumps([FORMAT, __version__, model.url, model.sha256, config], sort_keys=True)
    folder = Path(torch.hub.get_dir()) / "detector"
    first = next(other for other in PUBLISHED if PUBLISHED[other] == model)  # one file for two names of a model
    stem = f"{first.replace('/', '-')}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    checkpoint, source = folder / f"{stem}.pth", _cached(model)
    newer = checkpoint.is_file() and source.is_file() and source.stat().st_mtime > checkpoint.stat().st_mtime
    if newer or not checkpoint.is_file():
        _fetch(name, model)
        make_folder(folder, CACHE_ADVICE)
        new = folder / f".{stem}.{os.getpid()}.pth"
        try:
            import_weights(source, name.split("/")[0], new, model.config, model.overrides)
            os.replace(new, checkpoint)
        finally:
            new.unlink(missing_ok=True)
    return checkpoint


def _cached(model: Published) -> Path:
    """Where torch.hub and torchvision keep the file."""
    return Path(torch.hub.get_dir()) / "checkpoints" / model.file


def _fetch(name: str, model: Published) -> None:
    """Download the file if it is not there, and check it."""
    file = _cached(model)
    expected = f", whose SHA-256 begins with {model.sha256}" if model.sha256 else ""
    if not file.is_file():
        make_folder(file.parent, CACHE_ADVICE)
        try:
            torch.hub.download_url_to_file(model.url, str(file), hash_prefix=model.sha256 or None)
        except (OSError, RuntimeError, http.client.HTTPException) as error:  # no network, another hash, cut short
            raise CheckpointError(
                f"{name}: could not be downloaded ({error}). Download {model.url} on another machine and put it here as "
                f"{file}{expected}"
            ) from error
    found = _sha256(file)
    if not found.startswith(model.sha256):
        raise CheckpointError(
            f"{file}: not the published file of {name}{expected}; this one's with {found[:16]}. Remove it, and it is "
            f"downloaded again, or put the file of {model.url} there"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()

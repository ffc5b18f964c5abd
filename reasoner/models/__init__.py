"""The embedded base model, shipped inside the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def embedded_path() -> Path:
    """The Hugging Face directory of the embedded base model."""
    return Path(str(files(__name__).joinpath("embedded")))

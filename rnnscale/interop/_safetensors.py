"""The tensors of a folder of Hugging Face, in one safetensors file or in several with an index."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnscale._errors import MissingPackageError, UserError
from rnnscale.interop._arrays import read_array
from rnnscale.interop._transformers_folder import read_json

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class _Place(NamedTuple):
    file: str
    name: str  # in the file


class Tensors:
    """Tensors by name. The files are memory-mapped, so a tensor is in memory while it is used."""

    def __init__(self, folder: Path, old_names: Mapping[str, str]):
        """**Arguments:**

        - `folder`: where the files are.
        - `old_names`: names that tensors had in older files, and the new ones.

        **Raises:** `UserError` if there is no file or it can't be read, or the index is wrong;
            `MissingPackageError` without safetensors.
        """
        if importlib.util.find_spec("safetensors") is None:
            raise MissingPackageError(
                "weights are read with safetensors, which isn't installed: install "
                "rnnscale[huggingface], or safetensors"
            )
        self._folder = folder
        self._files: dict[str, Any] = {}
        if (folder / _ONE_FILE).is_file():
            found = dict.fromkeys(self._open(_ONE_FILE), _ONE_FILE)
        elif (folder / _INDEX).is_file():
            found = self._read_index()
        else:
            raise UserError(f"{folder} has no weights: neither {_ONE_FILE} nor {_INDEX} is there")
        self._places = {
            old_names.get(name, name): _Place(file, name) for name, file in found.items()
        }

    def check_names(self, what: str, expected: Mapping[str, str]) -> None:
        """Raises `UserError` unless these are the tensors. The values are the axes."""
        missing = [f"{name} ({axes})" for name, axes in expected.items() if name not in self]
        unknown = [
            f"{place.name} (in {place.file})"
            for name, place in self._places.items()
            if name not in expected
        ]
        if missing or unknown:
            wrong = (("has no", missing), ("has besides", unknown))
            phrases = [f"{verb} {_first(names)}" for verb, names in wrong if names]
            raise UserError(
                f"{self._folder} {' and '.join(phrases)}; {what} has {len(expected)} tensors, "
                f"such as {_first(list(expected))}"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str, axes: str, sizes: Mapping[str, int]) -> NDArray[np.float32]:
        """The tensor in float32. Raises `UserError` unless it has these axes and real numbers."""
        file, name = self._places[name]
        # A bfloat16 tensor needs the dtype of ml_dtypes, which jax has registered.
        tensor = self._files[file].get_tensor(name)
        return read_array(str(self._folder / file), name, tensor, axes, dict(sizes))

    def _open(self, file: str) -> list[str]:
        """Opens a file. Returns the names of its tensors."""
        from safetensors import SafetensorError, safe_open

        path = self._folder / file
        try:
            self._files[file] = safe_open(path, framework="np")
        except OSError as error:
            raise UserError(f"{path} can't be read ({error})") from error
        except SafetensorError as error:
            raise UserError(
                f"{path} is not a safetensors file, or not all of it: {error}"
            ) from error
        return list(self._files[file].keys())

    def _read_index(self) -> dict[str, str]:
        """The file of each tensor."""
        index = self._folder / _INDEX
        found = read_json(index).get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
            raise UserError(f'{index} must have a "weight_map" with the file of each tensor')
        for file in sorted(set(found.values())):
            listed = {name for name, place in found.items() if place == file}
            if wrong := listed ^ set(self._open(file)):
                raise UserError(
                    f"{self._folder / file} does not hold the tensors that {_INDEX} lists: "
                    f"{_first(sorted(wrong))} is in one of them only"
                )
        return found


def _first(names: list[str]) -> str:
    """The first names of a list that may be long."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

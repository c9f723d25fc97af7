"""`TransformersFolder`, what the files of a folder of `transformers` say. It needs no jax."""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnscale._errors import MissingPackageError, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TransformersFolder:
    """A folder with a model as `save_pretrained` of transformers writes it.

    ```
    config.json                    sizes and options of the model
    model.safetensors              its weights; or, with an index, model-00001-of-0000N.safetensors
    tokenizer.json                 how text becomes tokens
    generation_config.json         optional; the tokens that begin and end a text
    ```

    Nothing is read before it is needed. Names such as `"state-spaces/mamba-130m-hf"` are not
    looked up: nothing is downloaded.
    """

    def __init__(self, path: str | Path):
        """**Raises:** `UserError` if `path` is empty."""
        if not str(path):
            raise UserError("folder='' names no folder; give the folder of a model on this machine")
        self.path = Path(path)
        self.config_file = self.path / "config.json"

    @property
    def is_model(self) -> bool:
        """Whether the folder has a `config.json` that names a kind of model."""
        return self.config_file.is_file() and "model_type" in self.config

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`. Raises `UserError` if there is no such file, or if it does
        not hold an object."""
        if not self.path.is_dir():
            raise UserError(
                f"there is no folder {self.path}; give the folder of a model on this machine. A "
                "model of the Hugging Face Hub has to be downloaded first"
            )
        return read_json(self.config_file)

    @property
    def vocab(self) -> int:
        """The number of tokens. Raises `UserError` if `config.json` does not say it."""
        vocab = self.config.get("vocab_size")
        if not isinstance(vocab, int):
            raise UserError(f"{self.config_file} must have an integer vocab_size; got {vocab!r}")
        return vocab

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a text. Empty if the files name none."""
        return frozenset(self._tokens("eos_token_id"))

    @cached_property
    def begin_token(self) -> int | None:
        """The token that begins a text, if the files name one."""
        return next(iter(self._tokens("bos_token_id")), None)

    def tokenizer(self) -> "Tokenizer":
        """What `tokenizer.json` says. Raises `UserError` if it is missing or can't be read, and
        `MissingPackageError` without the package tokenizers."""
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise UserError(
                f"{self.path} has no tokenizer.json. For a tokenizer in another form, call "
                "save_pretrained of transformers' AutoTokenizer with this folder"
            )
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingPackageError(
                "tokenizer.json is read with tokenizers, which isn't installed: install "
                "rnnscale[huggingface], or tokenizers"
            ) from error
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing more specific
            raise UserError(f"{file} is not a tokenizer: {error}") from error

    def _tokens(self, name: str) -> list[int]:
        """The tokens that are called `name`, where transformers looks for them too."""
        file = self.path / "generation_config.json"
        options = [read_json(file)] if file.is_file() else []
        for each in (*options, self.config):
            found = each.get(name)
            if found is not None:
                tokens = found if isinstance(found, list) else [found]
                if not all(type(token) is int for token in tokens):
                    raise UserError(f"{name} must be a token or a list of them; got {found!r}")
                return tokens
        return []


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `UserError` if the file can't be read or is another."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"), object_hook=_number)
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} must hold a JSON object; it holds a {type(value).__name__}")
    return value


def _number(value: dict[str, Any]) -> Any:
    """Infinity as transformers writes it since version 5, or the object itself."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value

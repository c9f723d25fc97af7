"""What an importer of a kind of model of `transformers` says: the options in its config.json that
matter, the same model here, and which tensors are which parameters."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._checks import Must, Size, check_value
from rnnscale._errors import UserError, as_user_error
from rnnscale.interop._safetensors import Tensors
from rnnscale.layers import Linear
from rnnscale.models import LanguageModel

HEAD = "lm_head.weight"

# Options that have one value in every published model.
type Off = Annotated[bool, Must("be false", lambda value: not value)]
type On = Annotated[bool, Must("be true", bool)]


@dataclass(frozen=True)
class Source:
    """The tensors that one parameter is computed from.

    - `tensors`: their axes by name, such as `{"in_proj.weight": "projection hidden"}`.
    - `convert`: from these arrays, in this order, to the parameter.
    """

    tensors: Mapping[str, str]
    convert: Callable[..., NDArray[np.float32]] = lambda tensor: tensor


def same(name: str, axes: str) -> Source:
    """A parameter that is the tensor."""
    return Source({name: axes})


def one_plus(name: str, axes: str) -> Source:
    """A factor, which is one plus the tensor."""
    return Source({name: axes}, lambda tensor: 1 + tensor)


def stack(names: Sequence[str], axes: str) -> Source:
    """A parameter with a leading axis for several tensors of the same shape."""
    return Source(dict.fromkeys(names, axes), lambda *tensors: np.stack(tensors))


def taps(name: str, axes: str) -> Source:
    """The weight of a causal convolution. Its last tap there is that of the current step."""
    channels, width = axes.split()
    return Source({name: f"{channels} 1 {width}"}, lambda tensor: tensor[:, 0, ::-1])


@dataclass(frozen=True)
class Part:
    """A part of the model, or the same part of several blocks that are stacked.

    - `path`: where it is here, such as `"stack.blocks."`.
    - `prefixes`: where it is there; for a stack, where each block is.
    - `sources`: of each parameter, by its path in the part.
    - `stacked`: whether the parameters have a leading axis for the blocks.
    """

    path: str
    prefixes: Sequence[str]
    sources: Mapping[str, Source]
    stacked: bool = False

    def tensors(self) -> Iterator[tuple[str, str]]:
        """The names and axes of all its tensors."""
        for prefix in self.prefixes:
            for source in self.sources.values():
                yield from ((prefix + name, axes) for name, axes in source.tensors.items())

    def read(self, source: Source, tensors: Tensors, sizes: Mapping[str, int]) -> jax.Array:
        """One parameter."""

        def convert(prefix: str) -> NDArray[np.float32]:
            named = source.tensors.items()
            return source.convert(*(tensors.read(prefix + x, axes, sizes) for x, axes in named))

        arrays = [convert(prefix) for prefix in self.prefixes]
        return jnp.asarray(np.stack(arrays) if self.stacked else arrays[0])


@dataclass(frozen=True, kw_only=True)
class TransformersModel(ABC):
    """A kind of model of `transformers`. The fields are the options in config.json that matter,
    with the defaults of transformers; sizes have none. All others make no difference here."""

    embedding: ClassVar[str]
    last_norm: ClassVar[Source]
    layers: ClassVar[str]
    # Names that tensors had in older files, and those that they have today.
    old_names: ClassVar[Mapping[str, str]] = {}

    vocab_size: Size
    tie_word_embeddings: bool = False

    @classmethod
    def from_config(cls, file: Path, config: Mapping[str, Any]) -> Self:
        """**Raises:** `UserError` if an option is missing or its value is not supported."""
        hints = get_type_hints(cls, include_extras=True)
        fields = dataclasses.fields(cls)
        required = [each.name for each in fields if each.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in config]:
            raise UserError(
                f"{file} has no {', '.join(missing)}; a {config['model_type']} needs "
                f"{', '.join(required)}"
            )
        with as_user_error():
            options = {
                each.name: check_value(str(file), each.name, hints[each.name], config[each.name])
                for each in fields
                if each.name in config
            }
        return cls(**options)

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The size of every axis: `vocab`, `hidden`, and those that `block` names."""

    @abstractmethod
    def block(self, depth: int) -> Mapping[str, Source]:
        """For each parameter of the block at `depth`, by its path, the tensors in the layer."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The arguments of `LanguageModel`, apart from the vocabulary, its width and the head."""

    def make(self, key: PRNGKeyArray) -> LanguageModel:
        """The model, with initial values."""
        return LanguageModel(
            self.vocab_size,
            dim=self.sizes()["hidden"],
            make_head=None if self.tie_word_embeddings else partial(Linear, use_bias=False),
            key=key,
            **self.options(),
        )

    def parts(self, model: LanguageModel) -> list[Part]:
        """The parts of the model, of which `model` has the structure."""
        stack = model.stack
        outer = {"embedding.weight": same(self.embedding, "vocab hidden")}
        outer["norm.scale"] = self.last_norm
        if not self.tie_word_embeddings:
            outer["head.weight"] = same(HEAD, "vocab hidden")
        parts = [Part("", [""], outer)]
        for place, depths in enumerate(stack.depths()):
            path = f"stack.blocks.{place}." if isinstance(stack.blocks, tuple) else "stack.blocks."
            prefixes = [f"{self.layers}.{depth}." for depth in depths]
            parts.append(Part(path, prefixes, self.block(depths[0]), stacked=True))
        return parts

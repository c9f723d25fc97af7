"""`load_transformers`, a language model from a folder of `transformers`."""

from collections.abc import Mapping
from pathlib import Path

import equinox as eqx
import jax
import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.interop._safetensors import Tensors
from rnnscale.interop._transformers_folder import TransformersFolder
from rnnscale.interop._transformers_mamba import MambaForCausalLM
from rnnscale.interop._transformers_mamba2 import Mamba2ForCausalLM
from rnnscale.interop._transformers_model import HEAD, TransformersModel
from rnnscale.interop._transformers_recurrent_gemma import RecurrentGemmaForCausalLM
from rnnscale.interop._transformers_xlstm import XLSTMForCausalLM
from rnnscale.models import LanguageModel

_KINDS: Mapping[str, type[TransformersModel]] = {
    "mamba": MambaForCausalLM,
    "mamba2": Mamba2ForCausalLM,
    "recurrent_gemma": RecurrentGemmaForCausalLM,
    "xlstm": XLSTMForCausalLM,
}


@check_arguments
def load_transformers(folder: str | Path) -> LanguageModel:
    """The language model in a folder of `transformers`, with its weights in float32.

    It is an ordinary `LanguageModel`: it can be called, run step by step, trained, sharded and
    saved. Mamba, Mamba-2, RecurrentGemma and xLSTM are read, from the files that `save_pretrained`
    writes. Neither torch nor transformers is needed, and nothing is downloaded.

    ```
    model = load_transformers("mamba-130m-hf")
    state, logits = model(tokens)     # tokens: (batch, time)
    ```

    **Arguments:**

    - `folder`: with `config.json` and the weights, in `model.safetensors` or in several files with
        an index; see `TransformersFolder`.

    **Returns:** a `LanguageModel` that gives the logits of the original. Its compute dtype is
        float32, whatever that of the file.

    **Raises:** `ValueError` if a file is missing or can't be read, if the model is of another kind
        or has an option that is not supported, or if a tensor is missing, unknown or of another
        shape; `ImportError` without the package safetensors.

    **Differs from transformers:** `time_step_limit` of Mamba-2 holds at every step; there, only in
        calls with several. An xLSTM takes sequences of any length; there, it must be below
        `chunk_size` without the package xlstm.
    """
    where = TransformersFolder(folder)
    name = str(where.config.get("model_type"))
    if name not in _KINDS:
        raise UserError(
            f"{where.config_file} must have one of {', '.join(_KINDS)} as model_type; got {name}"
        )
    kind = _KINDS[name].from_config(where.config_file, where.config)
    try:
        model = eqx.filter_eval_shape(kind.make, jax.random.key(0))
    except ValueError as error:  # a size that does not suit another
        raise UserError(f"{where.config_file}: {error}") from error
    tensors, sizes, parts = Tensors(where.path, kind.old_names), kind.sizes(), kind.parts(model)
    expected = {tensor: axes for part in parts for tensor, axes in part.tensors()}
    # Some files hold the weight of a tied head too.
    copied = kind.tie_word_embeddings and HEAD in tensors
    copy = {HEAD: expected[kind.embedding]} if copied else {}
    tensors.check_names(f"a {name} with the sizes in config.json", expected | copy)
    if copied:
        head, embedding = (tensors.read(x, copy[HEAD], sizes) for x in (HEAD, kind.embedding))
        if not np.array_equal(head, embedding):
            raise UserError(
                f"{where.path}: {HEAD} must equal {kind.embedding}, because tie_word_embeddings "
                "is true, or missing and true by default"
            )
    sources = {
        part.path + path: (part, each) for part in parts for path, each in part.sources.items()
    }
    paths, structure = jax.tree_util.tree_flatten_with_path(model)
    arrays = []
    for path, _ in paths:
        part, source = sources[jax.tree_util.keystr(path, simple=True, separator=".")]
        arrays.append(part.read(source, tensors, sizes))
    return jax.tree.unflatten(structure, arrays)

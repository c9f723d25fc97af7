"""How text becomes tokens and back: as its bytes, or by a tokenizer."""

import codecs
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Protocol

from rnnscale._errors import UserError
from rnnscale.interop import TransformersFolder

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Text(Protocol):
    """A text that starts with a prompt and is continued. The parts that the methods return, one
    after another, are the text."""

    @property
    def prompt(self) -> Sequence[int]:
        """Its tokens, at least one."""
        ...

    def start(self) -> str: ...

    def more(self, tokens: Sequence[int]) -> str:
        """What these tokens add. A character may begin in one call and end in a later one."""
        ...

    def end(self) -> str: ...


class TextCodec(Protocol):
    """A way to write text as tokens."""

    @property
    def unit(self) -> str:
        """What a token is called."""
        ...

    @property
    def vocab(self) -> int:
        """The number of tokens."""
        ...

    @property
    def end_tokens(self) -> Set[int]:
        """The tokens that end a text."""
        ...

    def begin(self, prompt: bytes) -> Text: ...


class ByteCodec:
    """The bytes of UTF-8. The byte 0 stands before and after a text, as in the training."""

    unit = "byte"
    vocab = 256
    end_tokens = frozenset([0])

    def begin(self, prompt: bytes) -> "_ByteText":
        return _ByteText(prompt)


class _ByteText:
    def __init__(self, prompt: bytes):
        self.prompt = [0, *prompt]
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def start(self) -> str:
        return self.more(self.prompt[1:])

    def more(self, tokens: Sequence[int]) -> str:
        return self._decode(bytes(tokens))

    def end(self) -> str:
        return self._decode(b"", final=True)


class TokenizerCodec:
    """The tokenizer of a folder of `transformers`."""

    unit = "token"

    def __init__(self, folder: TransformersFolder):
        self._folder = folder
        self._tokenizer = folder.tokenizer()
        self.vocab = folder.vocab
        self.end_tokens = folder.end_tokens

    def begin(self, prompt: bytes) -> "_TokenizerText":
        try:
            text = prompt.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"a prompt for a tokenizer must be UTF-8: {error}") from error
        # Special tokens that this model expects before a text are added here.
        tokens: list[int] = self._tokenizer.encode(text).ids
        if not tokens:
            begin = self._folder.begin_token
            if begin is None:
                raise UserError(
                    f"the prompt has no tokens, and {self._folder.path} names none that begins a "
                    "text (bos_token_id): give a --prompt"
                )
            tokens = [begin]
        if beyond := [token for token in tokens if not 0 <= token < self.vocab]:
            raise UserError(
                f"tokenizer.json gives the token {beyond[0]}, but the model in "
                f"{self._folder.path} has {self.vocab} tokens: it belongs to another model"
            )
        return _TokenizerText(self._tokenizer, text, tokens)


class _TokenizerText:
    def __init__(self, tokenizer: "Tokenizer", text: str, prompt: Sequence[int]):
        from tokenizers.decoders import DecodeStream

        self.prompt = prompt
        self._text, self._tokenizer = text, tokenizer
        self._stream = DecodeStream(list(prompt), skip_special_tokens=True)
        self._held: list[int] = []

    def start(self) -> str:
        return self._text

    def more(self, tokens: Sequence[int]) -> str:
        parts = []
        for token in tokens:
            part = self._stream.step(self._tokenizer, token)
            self._held = [] if part else [*self._held, token]
            parts.append(part or "")
        return "".join(parts)

    def end(self) -> str:
        """The beginning of a character that was not completed."""
        return self._tokenizer.decode(self._held) if self._held else ""

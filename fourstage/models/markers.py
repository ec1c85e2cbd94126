"""Special tokens that are spelt out in a text: plain words for the model, not the tokens themselves."""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# A code point that is no character, and so in no text: with it inside, a marker is not taken for the token.
_BREAK = "\ufdd0"
# Tags that answers are made of: they stay what the tokenizer makes of them, even where it calls them special.
_CONTENT_TAG = re.compile(r"</?(think|thinking|tool_call|tool_response|answer)>|\[/?THINK\]|\u25c1/?think\u25b7")


@dataclass(eq=False)
class Markers:
    """The special tokens of a tokenizer, as they may be spelt out in a text.

    `broken` texts are read by `reader`: markers in them are plain text there, everything else is as it was.
    Example: with <|eos|> for an end token, reader(broken("a <|eos|>")) has its signs, and not the token.
    """

    tokenizer: PreTrainedTokenizerBase

    def __getstate__(self) -> dict:
        """Without what is made when first needed, so that copies and hashes stay the same."""
        return {"tokenizer": self.tokenizer}

    @cached_property
    def pattern(self) -> re.Pattern:
        """Finds markers. None in texts for tokenizers written in Python, which offer no way to keep them out."""
        fast = isinstance(self.tokenizer, PreTrainedTokenizerFast)
        names = [token.content for token in self.tokenizer.added_tokens_decoder.values() if fast and token.special]
        names = [name for name in names if len(name) > 1 and name.strip() and not _CONTENT_TAG.fullmatch(name)]
        longest_first = sorted(names, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # which never matches

    def found_in(self, value: Any) -> bool:
        """Whether a text, or a text anywhere in lists and mappings, has a marker."""
        if isinstance(value, str):
            return self.pattern.search(value) is not None
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        return any(map(self.found_in, parts))

    def broken(self, value: Any) -> Any:
        """The same value with every marker in its texts broken after the first sign."""
        if isinstance(value, str):
            return self.pattern.sub(lambda match: f"{match[0][0]}{_BREAK}{match[0][1:]}", value.replace(_BREAK, ""))
        if isinstance(value, Mapping):
            return {key: self.broken(part) for key, part in value.items()}
        return [self.broken(part) for part in value] if isinstance(value, list) else value

    @cached_property
    def reader(self) -> PreTrainedTokenizerBase:
        """A copy of the tokenizer that drops the breaks, once it has looked for special tokens."""
        twin = cast(PreTrainedTokenizerFast, deepcopy(self.tokenizer))
        backend, own = twin.backend_tokenizer, twin.backend_tokenizer.normalizer
        backend.normalizer = normalizers.Sequence([normalizers.Replace(_BREAK, ""), *([own] if own else [])])
        special = [token for token in twin.added_tokens_decoder.values() if token.special]
        # A token with `normalized` would be looked for after the breaks are gone.
        backend.add_special_tokens([_unnormalized(token) for token in special if token.normalized])
        texts = {token.content: self.broken(token.content) for token in special if self.found_in(token.content)}
        if any(name in backend.encode(text, add_special_tokens=False).tokens for name, text in texts.items()):
            # Unigram models have special tokens among their words too: there the break stays, and parts them.
            pieces = [pre_tokenizers.Split(_BREAK, "removed")]
            pieces += [backend.pre_tokenizer] if backend.pre_tokenizer else []
            backend.normalizer, backend.pre_tokenizer = own, pre_tokenizers.Sequence(pieces)
        return twin


def _unnormalized(token: AddedToken) -> AddedToken:
    kept = {"single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip}
    return AddedToken(token.content, normalized=False, special=True, **kept)

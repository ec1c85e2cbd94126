"""Opens what a model name stands for, a Hub id, a folder or a GGUF file; whatever is wrong takes one line."""

import os
import re
import shutil
import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from fourstage.errors import one_line
from fourstage.models.turns import adapt_template
from fourstage.parent import is_gguf, tokenizer_home

if TYPE_CHECKING:
    from fourstage.arguments import ModelArguments  # brings TRL along, which a chat has no use for

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")


@contextmanager
def opening(name: str) -> Generator[None]:
    """Within it, what goes wrong with a model's or tokenizer's files is a ValueError of one line that names the fix.

    Of the dozen types that transformers and huggingface_hub raise the cause is told by the type where there is one,
    else by the words of the message (transformers 5.23).
    """
    try:
        yield
    except (OSError, ValueError, ImportError, HfHubHTTPError, SafetensorError, struct.error, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):
            raise
        raise ValueError(f"{name}: {_reason(name, error)}") from error


def _reason(name: str, error: BaseException) -> str:
    kinds, text = tuple(type(cause) for cause in _causes(error)), one_line(error, longest=2_000)

    def caused_by(*wanted: type) -> bool:
        return any(issubclass(kind, wanted) for kind in kinds)

    if "trust_remote_code" in text:
        return (
            "this architecture is code in the model's own repository, which is not run unasked; read it, then give "
            "--trust_remote_code true"
        )
    if caused_by(GatedRepoError) or "gated repo" in text:
        return "a gated repository; ask for access on its page, then run `hf auth login` or set HF_TOKEN"
    if caused_by(RevisionNotFoundError) or "is not a valid git identifier" in text:
        return "the repository has no such revision; choose another --model_revision"
    if caused_by(RepositoryNotFoundError) or "is not a valid model identifier" in text:
        return (
            "no such folder, and no such repository on the Hub, or a private one: check the spelling, or run "
            "`hf auth login`"
        )
    if _has_pickles_only(name):
        return (
            "its weights are pickles, which can run code, and are not opened; make safetensors of them where you "
            "trust them: load it in transformers with weights_only=True and save_pretrained"
        )
    if "model.safetensors" in text:
        return "no safetensors weights found in it; pickles are not opened, as they can run code"
    if caused_by(SafetensorError, struct.error) or (is_gguf(name) and re.search("cannot reshape|empty file", text)):
        return f"a file of it is broken or cut off ({text[:200]}); fetch or make it again"
    if Path(name).exists():
        return text[:400]
    if caused_by(OfflineModeIsEnabled) or os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "ON", "YES"):
        return "not on this machine, and offline mode is on (HF_HUB_OFFLINE); unset it, or give the path of a folder"
    if caused_by(ConnectionError) or "couldn't connect" in text:
        return "the Hub cannot be reached and it is not in the cache; check the network, or give the path of a folder"
    return text[:400]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _has_pickles_only(name: str) -> bool:
    folder = Path(name)
    return any((folder / file).is_file() for file in _PICKLES) and not list(folder.glob("*.safetensors"))


def loading_options(model_args: "ModelArguments") -> dict[str, Any]:
    """What every `from_pretrained` gets: the revision, and remote code only if it was asked for."""
    return {"revision": model_args.model_revision, "trust_remote_code": model_args.trust_remote_code}


def open_tokenizer(name: str | PathLike[str], **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub id, a folder or a GGUF file, with its chat template.

    Args:
        name: an adapter that brings no tokenizer has that of its run, or of its base.
        options: for `from_pretrained`, such as `loading_options` gives; a GGUF file has no use for them.
    Raises:
        ValueError: of one line, as `opening` says.
    """
    name = str(name)
    if is_gguf(name):
        with _gguf(name) as (folder, file):
            return _tokenizer(folder, gguf_file=file)
    home, revision = tokenizer_home(name, options.get("revision"))
    with opening(home):
        return _tokenizer(home, **(options if home == name else options | {"revision": revision or "main"}))


def _tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    # AutoTokenizer is typed as if it could give None; it raises instead.
    tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(name, **options))
    adapt_template(tokenizer)
    return tokenizer


def dequantised(path: str, folder: Path) -> Path:
    """Writes the model of a GGUF file into `folder`, as float32 safetensors with its tokenizer; returns the folder.

    The weights are those that llama.cpp computes with: what quantisation lost stays lost. Done once: a folder that is
    there is kept.
    """
    if folder.is_dir():
        return folder
    print(f"{path}: dequantised to {folder}, float32", flush=True)
    with _gguf(path) as (parent, file):
        model = AutoModelForCausalLM.from_pretrained(parent, gguf_file=file, dtype=torch.float32)
        tokenizer = _tokenizer(parent, gguf_file=file)
    del model.config.quantization_config  # says that the weights are GGUF's, and saving would be refused
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.generation_config = model.generation_config
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    plain.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(folder)
    return folder


@contextmanager
def _gguf(path: str) -> Generator[tuple[str, str]]:
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: no such GGUF file; fetch it with `hf download OWNER/NAME {file.name} --local-dir .`")
    if not find_spec("gguf"):
        raise ValueError(f'{path}: GGUF files need the extra gguf: pip install -e ".[gguf]" -c constraints.txt')
    with opening(path):
        yield str(file.parent), file.name

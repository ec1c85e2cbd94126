"""Opens what a model name stands for, a Hub id, a folder or a GGUF file; whatever is wrong takes one line."""

import os
import re
import shutil
import struct
import threading
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

from fourstage.disk import disk_problem
from fourstage.errors import one_line
from fourstage.models.turns import adapt_template, written
from fourstage.parent import is_gguf, tokenizer_home

if TYPE_CHECKING:
    from fourstage.arguments import ModelArguments  # brings TRL along, which a chat has no use for

_LONGEST_TEMPLATE = 1_000_000  # characters around one word
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")


@contextmanager
def opening(name: str) -> Generator[None]:
    """Within it, what goes wrong with a model's or tokenizer's files is a ValueError of one line that names the fix.

    Of the dozen types that transformers and huggingface_hub raise the cause is told by the type where there is one,
    else by the words of the message (transformers 5.23).
    """
    try:
        yield
    except Exception as error:  # whatever a file can make a reader raise
        raise ValueError(f"{name}: {_reason(name, error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, as the tokenizers library raises it
            raise
        raise ValueError(f"{name}: {_reason(name, error)}") from error


def _reason(name: str, error: BaseException) -> str:
    kinds, text = tuple(type(cause) for cause in _causes(error)), one_line(error, longest=2_000)

    def caused_by(*wanted: type) -> bool:
        return any(issubclass(kind, wanted) for kind in kinds)

    if said := disk_problem(error):
        return said
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
    if caused_by(MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return f"there is not enough memory for the model of its config.json ({text[:200]})"
    if not caused_by(OSError, ValueError, ImportError, HfHubHTTPError) and "mismatch" not in text:
        shown = one_line(error, longest=200, with_type=True)
        return f"a file of it does not hold what it should ({shown}); fetch or make it again"
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
    _try_template(tokenizer)
    return tokenizer


def _try_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError for a chat template that no conversation could be written with; an empty one is taken away."""
    template = tokenizer.chat_template
    templates = [template] if isinstance(template, str | None) else template
    if not isinstance(templates, list | dict) or not all(isinstance(one, str | None) for one in templates):
        raise ValueError(f"its chat template is {type(template).__name__}, expected text; correct it")
    if isinstance(template, str) and not template.strip():
        tokenizer.chat_template = template = None
    if not isinstance(template, str):
        return
    with _little_memory():
        try:
            text = written(tokenizer, template, [{"role": "user", "content": "a"}]) or ""
        except MemoryError:
            text = " " * (_LONGEST_TEMPLATE + 1)
    if len(text) > _LONGEST_TEMPLATE:
        raise ValueError("its chat template writes more than a million characters around one word; correct it")


@contextmanager
def _little_memory() -> Generator[None]:
    """Within it this process can allocate one more GB at most, where the system can limit it: on Linux."""
    pages = Path("/proc/self/statm")
    if not pages.is_file() or threading.current_thread() is not threading.main_thread():
        yield
        return
    import resource  # which not every system has

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(pages.read_text().split()[0]) * resource.getpagesize() + (1 << 30)
    if soft != resource.RLIM_INFINITY and soft <= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


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

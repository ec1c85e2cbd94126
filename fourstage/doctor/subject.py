"""What the doctor looks at: settings, a run, a model or data, opened as far as that goes without training."""

import copy
import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from fourstage import resolve
from fourstage.doctor.findings import Finding, fail, refused, unknown
from fourstage.doctor.reading import Encoded, Part, read_rows, stand_in_texts
from fourstage.errors import one_line
from fourstage.models.checkpoint import check_openable, open_config
from fourstage.models.loading import load_tokenizer
from fourstage.models.opening import loading_options, open_tokenizer
from fourstage.models.tokenizer import train_tokenizer
from fourstage.parent import find_parent, is_gguf, is_hub_id, needed_parent, whole_model
from fourstage.plan.models import shapes_of
from fourstage.plan.recipe import Settings
from fourstage.rl.rewards import load_rewards


@dataclass
class Subject:
    """What is looked at; None and empty where there is none, or it could not be opened.

    Args:
        target: as it was named. kind: recipe, run, model, data, or settings that cannot be read.
        stage: whose rows or model it is; "" for a model from elsewhere.
        settings: of the recipe, resolved; of a run those by which its rows are read.
        model: the name of the model that is started from, or looked at. record: the run.json of a run, or of the model.
        own_tokenizer: as it is saved. tokenizer: as the recipe takes it, with a pad that differs from the end.
        train, test: rows; `test` is None where the split is the recipe's. rewards: as `load_rewards` gives them.
        encoded: the first `looked_at` rows to train on, as ids. found: findings from opening it.
    """

    target: str
    kind: str
    stage: str = ""
    settings: Settings | None = None
    model: str | None = None
    record: dict | None = None
    own_tokenizer: PreTrainedTokenizerBase | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    config: PreTrainedConfig | None = None
    generation: GenerationConfig | None = None
    train: Part | None = None
    test: Part | None = None
    rewards: Sequence[str | Callable] = ()
    encoded: list[Encoded] = field(default_factory=list)
    looked_at: int = 0
    found: list[Finding] = field(default_factory=list)

    @property
    def training(self) -> Any:
        """The training settings, of the stage's class."""
        return self.settings.training if self.settings else None

    @property
    def chats(self) -> bool:
        """Whether its texts are written by a chat template."""
        return self.stage != "pretrain" and bool(self.tokenizer is not None and self.tokenizer.chat_template)


def attempt(found: list[Finding], what: str, action: Callable[[], Any], where: str = "") -> Any:
    """What `action` returns, quietly; None where it fails, which is then a finding."""
    try:
        with redirect_stdout(io.StringIO()):
            return action()
    except ValueError as error:
        found.append(refused(what, error, where))
    except (
        TemplateError,
        ImportError,
        OSError,
        RuntimeError,
        TypeError,
        KeyError,
        OverflowError,
        MemoryError,
    ) as error:
        found.append(fail(what, one_line(error, with_type=True), "mend what it names", where))
    return None


def open_recipe(target: str, settings: Settings) -> Subject:
    """The subject of a recipe's settings, which are resolved on the way."""
    subject = Subject(target, "recipe", settings.stage, settings, settings.model.model_name_or_path)
    found, stage = subject.found, settings.stage
    if stage != "pretrain" or subject.model:
        parent = attempt(
            found,
            "model",
            lambda: needed_parent(subject.model, settings.model.model_revision, stage),
            subject.model or "",
        )
        if parent is None:
            subject.model = None
        else:
            subject.record = parent.record
            _open_model(subject, settings)
            found[:] = [_unreached(finding, subject.model) for finding in found]
    if stage in ("ppo", "grpo"):
        subject.rewards = attempt(found, "rewards", lambda: load_rewards(settings.training)) or ()
    _resolve(subject, settings)
    subject.train, subject.test = _rows(subject, settings)
    if stage == "pretrain" and not settings.model.model_name_or_path:
        subject.config = attempt(found, "model", lambda: shapes_of(settings).policy)
        if subject.train and subject.train.rows:
            texts = stand_in_texts(subject.train)
            size, length = settings.model.vocab_size or 384, settings.training.max_length
            subject.tokenizer = attempt(found, "tokenizer", lambda: train_tokenizer(texts, size, length))
    return subject


def open_data(target: str, settings: Settings) -> Subject:
    """The subject of data alone; with a model in the settings also its tokenizer."""
    subject = Subject(target, "data", settings.stage, settings, settings.model.model_name_or_path)
    if subject.model:
        _open_model(subject, settings)
        _resolve(subject, settings)
    if settings.stage == "grpo" and settings.training.reward_funcs:
        subject.rewards = attempt(subject.found, "rewards", lambda: load_rewards(settings.training)) or ()
    subject.train, subject.test = _rows(subject, settings)
    return subject


def open_model(target: str, settings: Settings, record: dict | None = None) -> Subject:
    """The subject of a model's folder, Hub id or GGUF file; of a finished run with its run.json."""
    subject = Subject(target, "run" if record else "model", (record or {}).get("stage", ""), None, target, record)
    if record is None:
        parent = attempt(subject.found, "model", lambda: find_parent(target), target)
        subject.record = parent.record if parent else None
        subject.stage = (subject.record or {}).get("stage", "")
    settings = copy.copy(settings)
    settings.model = copy.copy(settings.model)
    settings.model.model_name_or_path = target
    _open_model(subject, settings)
    return subject


def _open_model(subject: Subject, settings: Settings) -> None:
    """Configuration and tokenizers of the settings' model."""
    model, found = settings.model, subject.found
    name, options = model.model_name_or_path, loading_options(model)
    assert name, "only a subject with a model opens one"
    scores = subject.kind != "recipe" and subject.stage == "reward"
    is_open = open_config if subject.kind != "recipe" else lambda name, **hub: check_openable(name, scores, **hub)
    if subject.stage == "reward":
        is_open = open_config
    subject.config = attempt(found, "model", lambda: is_open(name, **options), name)
    if subject.config is None:
        return
    subject.own_tokenizer = attempt(found, "tokenizer", lambda: open_tokenizer(model.tokenizer_name or name, **options))
    chats = subject.kind == "recipe" and subject.stage != "pretrain"
    if subject.own_tokenizer is not None:
        loaded = attempt(found, "tokenizer", lambda: load_tokenizer(model, chats), model.tokenizer_name or name)
        subject.tokenizer = loaded[0] if loaded else None
    subject.generation = _generation(name, model.model_revision, subject.config)


def _generation(name: str, revision: str | None, config: PreTrainedConfig) -> GenerationConfig | None:
    if is_gguf(name):
        return None
    whole, revision = whole_model(name, revision)
    try:
        return GenerationConfig.from_pretrained(whole, revision=revision or "main")
    except OSError:  # not every folder has one
        return GenerationConfig.from_model_config(config)


def _resolve(subject: Subject, settings: Settings) -> None:
    stage, parts = settings.stage, (settings.data, settings.training, settings.model)
    if subject.config is None and (stage != "pretrain" or settings.model.model_name_or_path):
        return
    if stage == "grpo":
        if subject.tokenizer is not None:
            tokenizer = subject.tokenizer
            attempt(subject.found, "settings", lambda: resolve.resolve_grpo(*parts, tokenizer))
    else:
        attempt(subject.found, "settings", lambda: getattr(resolve, f"resolve_{stage}")(*parts))


def _rows(subject: Subject, settings: Settings) -> tuple[Part | None, Part | None]:
    own: list[Finding] = []
    functions = [one for one in subject.rewards if callable(one)]
    parts = attempt(own, "rows", lambda: read_rows(settings, functions, subject.tokenizer if subject.chats else None))
    names = [settings.data.dataset_name, *(each.get("dataset_name") for each in settings.data.datasets or [])]
    told = {finding.reason for finding in subject.found}
    subject.found += [_unreached(finding, *names) for finding in own if finding.reason not in told]
    return parts or (None, None)


# Words of `models.opening` and `data.sources`.
_UNREACHED = ("cannot be read; mend it or choose another", "offline mode is on", "the Hub cannot be reached")


def _unreached(finding: Finding, *names: str | None) -> Finding:
    """What could not be fetched from the Hub is not a fault of a run that starts where it can be."""
    on_hub = any(name and name != "fourstage/demo" and is_hub_id(name) for name in names)
    text = f"{finding.reason}; {finding.fix}"
    if finding.level == "FAIL" and on_hub and any(words in text for words in _UNREACHED):
        return unknown(finding.what, finding.reason, "look again where the Hub can be reached", finding.where)
    return finding

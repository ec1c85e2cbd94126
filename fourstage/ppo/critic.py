"""The critic: a value for the state at every position, from a backbone and a head with one output."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import disable_dropout_in_model, use_adapter

from fourstage.models.checkpoint import check_openable, open_backbone, open_classifier, open_config
from fourstage.models.facts import check_one_label
from fourstage.models.fused_head import base_model
from fourstage.parent import VALUE_HEAD, check_parent
from fourstage.ppo.config import PPOConfig
from fourstage.ppo.sharding import gathered, shard_critic
from fourstage.rl.forward import positions

ADAPTER = "value"


class Critic(nn.Module):
    """V(s_t) for every position t of a batch: `forward(input_ids, attention_mask)` -> (B, P + T) float32.

    The value at a position is that of the state after its token.

    Args:
        backbone: gives hidden states. head: (B, P + T, hidden size) -> (B, P + T, 1).
        adapted: the model that `backbone` is a part of, if the critic is the adapter "value" on it.
        shared: whether `adapted` is the policy; else it is the critic's own.
    """

    backbone: PreTrainedModel  # only without `adapted`; may be a PeftModel itself, which answers in its place
    adapted: PeftModel  # only if it is the critic's own

    def __init__(
        self, backbone: PreTrainedModel, head: nn.Linear, adapted: PeftModel | None = None, shared: bool = False
    ):
        super().__init__()
        self.head = head
        # In lists, which hide modules from nn.Module: as submodules, the policy would be moved and saved twice, and a
        # part of another submodule have two names.
        self._adapted = [] if adapted is None else [adapted]
        self._part = [] if adapted is None else [backbone]
        self.is_shared = shared
        if adapted is None:
            self.backbone = backbone
        elif not shared:
            self.adapted = adapted

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        backbone = self.below_head
        extra = positions(backbone, attention_mask)
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra)
        return self.head(hidden.last_hidden_state.to(next(self.head.parameters()).dtype)).squeeze(-1).float()

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter on a policy's base."""
        return bool(self._adapted)

    @property
    def below_head(self) -> PreTrainedModel:
        """What gives the hidden states: `backbone`, or the part of `adapted`."""
        return self._part[0] if self._part else self.backbone

    @contextmanager
    def active(self) -> Generator[None]:
        """A context for forward and backward passes, in which a shared base uses the critic's adapter."""
        if self.is_shared:
            with use_adapter(self._adapted[0], ADAPTER):
                yield
        else:
            yield

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the critic's optimizer updates, by name."""
        if not self.is_adapter:
            return {name: p for name, p in self.named_parameters() if p.requires_grad}
        return {f"head.{name}": p for name, p in self.head.named_parameters()} | self._adapter_weights()

    def _adapter_weights(self) -> dict[str, nn.Parameter]:
        with self.active():  # by which PEFT tells an adapter's own; a layer may be called "value" as well
            return {name: p for name, p in self._adapted[0].named_parameters() if p.requires_grad}

    def save(self, folder: Path, writes: bool = True) -> None:
        """Writes the backbone, with adapters merged, and the head beside it: a folder for `load_critic`.

        A critic that is an adapter on the policy's base writes the adapter, which PEFT puts on that base, and the head.
        Of several processes all have to call it, for shards of weights come from each, and one `writes`.
        """
        head = gathered(self.head.state_dict())
        parts = self._adapter_weights() if self.is_adapter else self.backbone.state_dict()
        weights = gathered(parts) if self.is_sharded else None
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(head, folder / VALUE_HEAD)
        if self.is_adapter:
            self._adapted[0].save_pretrained(
                str(folder), selected_adapters=[ADAPTER], save_embedding_layers=False, state_dict=weights
            )
        else:
            backbone = self.backbone
            merged = copy.deepcopy(backbone).merge_and_unload() if isinstance(backbone, PeftModel) else backbone
            merged.save_pretrained(folder, state_dict=weights)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return isinstance(next(self.head.parameters()), DTensor)


def classifier_critic(model: PreTrainedModel | PeftModel) -> Critic:
    """The critic that is a sequence classifier with one label, such as a reward model: its score at every position.

    Raises:
        ValueError: if it has another number of labels, or its head is not one linear layer on the last hidden state.
    """
    classifier = base_model(model)
    check_one_label(getattr(classifier.config, "num_labels", None), f"value_model: {type(classifier).__name__}")
    head = next((getattr(classifier, name) for name in ("score", "classifier") if hasattr(classifier, name)), None)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"value_model: {type(classifier).__name__} has no linear head called score or classifier, so it has no "
            "value for every token; leave value_model out to use the policy's backbone with a new head"
        )
    return Critic(backbone_of(classifier), head)


def policy_critic(policy: PreTrainedModel) -> Critic:
    """A copy of the policy's backbone with a head of zeros: every value starts at 0."""
    backbone = copy.deepcopy(backbone_of(policy))
    return Critic(backbone, zero_head(policy))


def adapter_critic(policy: PeftModel, shares_base: bool = True) -> Critic:
    """A second adapter on the frozen base of a policy with adapters: no second copy of the weights.

    Without `shares_base` it is on a copy of the base, for an engine that shards the policy for the policy alone.
    """
    model = policy if shares_base else copy.deepcopy(policy)
    if ADAPTER not in model.peft_config:
        settings = copy.deepcopy(model.peft_config["default"])
        # These fields belong to the policy's vocabulary and head; the critic has a head of its own.
        for field in ("trainable_token_indices", "modules_to_save"):
            setattr(settings, field, None)
        model.add_adapter(ADAPTER, settings)
    base = base_model(model)
    critic = Critic(backbone_of(base), zero_head(base), adapted=model, shared=shares_base)
    model.set_adapter("default" if shares_base else ADAPTER)
    if not shares_base:
        for name in set(model.peft_config) - {ADAPTER}:
            model.delete_adapter(name)
    return critic


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model below its head, which gives hidden states."""
    return cast(PreTrainedModel, model.base_model)  # transformers' own type says nn.Module


def zero_head(model: PreTrainedModel) -> nn.Linear:
    """A linear head without bias whose weights are 0 (openai/lm-human-preferences starts its value head this way)."""
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, bias=False)
    nn.init.zeros_(head.weight)
    return head


def load_critic(name: str) -> Critic:
    """The critic in a folder that `Critic.save` wrote, or any sequence classifier with one label (folder or Hub id).

    Raises:
        ValueError: for an adapter of a critic that shares its policy's base, and as `classifier_critic`.
    """
    check_value_model(name)
    folder = Path(name)
    if (folder / VALUE_HEAD).is_file():
        backbone = open_backbone(name, dtype=torch.float32)
        weights = load_file(folder / VALUE_HEAD)
        head = nn.Linear(weights["weight"].shape[1], 1, bias="bias" in weights)
        head.load_state_dict(weights)
        return Critic(backbone, head)
    return classifier_critic(open_classifier(name, dtype=torch.float32))


def check_value_model(name: str) -> None:
    """Raises ValueError where `load_critic` would, as far as that can be told without reading weights."""
    folder = Path(name)
    if (folder / ADAPTER / "adapter_config.json").is_file():
        raise ValueError(
            f"value_model={name} is an adapter that shares its policy's base; give the folder of a critic with all its "
            "weights, or a classifier with one label"
        )
    if not (folder / VALUE_HEAD).is_file():
        check_parent(name, expected="reward")
        check_openable(name, scores=True)
        check_one_label(open_config(name).num_labels, f"value_model={name}")


def same_vocabulary(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give every token the same id. Equal sizes do not show that."""
    return one.get_vocab() == other.get_vocab()


def build_critic(
    policy: PreTrainedModel | PeftModel,
    value_model: str | PreTrainedModel | PeftModel | None,
    scorers: list[tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    tokenizer: PreTrainedTokenizerBase,
    peft_config: PeftConfig | None,
    sharded: bool = False,
) -> Critic:
    """The critic of a run, the first of these that applies: the given `value_model`; an adapter beside the policy's; a
    copy of the only reward model, if it has the policy's vocabulary; the policy's backbone with a head of zeros.

    Args:
        policy: unwrapped. value_model: a name, or a sequence classifier with one label. scorers: the reward models
        among the reward functions, each with its tokenizer. tokenizer: the policy's. peft_config: adapters for a critic
        that is not an adapter itself. sharded: whether an engine shards the policy, whose base is then its own alone.
    Raises:
        ValueError: as `load_critic`, and if the critic's vocabulary is smaller than the policy's.
    """
    if value_model is None and isinstance(policy, PeftModel):
        return adapter_critic(policy, shares_base=not sharded)
    if isinstance(value_model, str):
        critic = load_critic(value_model)
    elif value_model is not None:
        critic = classifier_critic(value_model)
    elif len(scorers) == 1 and same_vocabulary(scorers[0][1], tokenizer):
        critic = classifier_critic(copy.deepcopy(scorers[0][0]))
    else:
        critic = policy_critic(base_model(policy))
    _check_vocabulary(critic, tokenizer)
    critic.requires_grad_(True)
    if peft_config is not None:
        critic.backbone = _with_adapters(critic.backbone, peft_config)
    return critic


def _check_vocabulary(critic: Critic, tokenizer: PreTrainedTokenizerBase) -> None:
    size = len(cast(nn.Embedding, critic.backbone.get_input_embeddings()).weight)
    if size < len(tokenizer):
        raise ValueError(
            f"value_model reads {size} token ids, the policy's tokenizer has {len(tokenizer)}: the critic reads the "
            "policy's tokens, so it must have been trained with the policy's tokenizer"
        )


def _with_adapters(backbone: PreTrainedModel, peft_config: PeftConfig) -> PreTrainedModel:
    settings = copy.deepcopy(peft_config)
    settings.task_type = "FEATURE_EXTRACTION"
    return cast(PreTrainedModel, get_peft_model(backbone, settings))  # a PeftModel answers as the model it wraps


def prepare_critic(critic: Critic, accelerator: Accelerator, args: PPOConfig, sharded: bool) -> None:
    """Turns dropout off if `args` do, moves the critic to its device, sharded or whole, and sets gradient checkpointing
    as the policy's. All processes begin with the weights of the first.
    """
    if args.disable_dropout:
        disable_dropout_in_model(critic)
    critic.to(accelerator.device).train(bool(args.activation_checkpointing))
    if args.activation_checkpointing and not critic.is_shared:
        critic.below_head.activation_checkpointing_enable()
    if accelerator.num_processes > 1:
        for parameter in critic.trained().values():  # adapters, of which each process has drawn its own
            torch.distributed.broadcast(parameter.data, src=0)
    if sharded:
        shard_critic(critic, accelerator)

"""The critic: a value for the state before every token, from a backbone and a scalar head."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from peft import PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from trl.trainer.utils import disable_dropout_in_model, use_adapter

from fourstage.models.opening import opening
from fourstage.rl.forward import positions
from fourstage.rl.rewards import check_one_label

HEAD_FILE = "value_head.safetensors"
ADAPTER = "value"


class Critic(nn.Module):
    """V(s_t) for every position t of a batch: `forward(input_ids, attention_mask)` -> (B, P + T) float32.

    `shared_with` is the policy whose frozen base the critic uses through an adapter of its own, else None.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, shared_with: nn.Module | None = None):
        super().__init__()
        self.head = head
        # A shared backbone belongs to the policy: no submodule of the critic, or it would be moved and saved twice.
        self._backbone = [backbone] if shared_with is not None else None
        if shared_with is None:
            self.backbone = backbone
        self._policy = [shared_with]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        backbone = self._backbone[0] if self._backbone else self.backbone
        extra = positions(backbone, attention_mask)
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra)
        return self.head(hidden.last_hidden_state.to(next(self.head.parameters()).dtype)).squeeze(-1).float()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it a shared backbone computes values, not the policy's hidden states; backward passes too."""
        if self._policy[0] is None:
            yield
        else:
            with use_adapter(self._policy[0], ADAPTER):
                yield

    def trained(self) -> dict[str, nn.Parameter]:
        """What the critic's optimizer updates, by name."""
        own = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if self._policy[0] is None:
            return own
        return own | {n: p for n, p in self._policy[0].named_parameters() if f".{ADAPTER}." in n}

    def save(self, folder: Path) -> None:
        """Writes a folder that `load_critic` reads: the backbone (an adapter merged), and the head beside it.

        A critic that shares the policy's base leaves its adapter, to be put on that base with PEFT, and the head.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.head.state_dict().items()}, folder / HEAD_FILE)
        if self._policy[0] is not None:
            self._policy[0].save_pretrained(folder, selected_adapters=[ADAPTER])
        elif is_peft_model(self.backbone):
            copy.deepcopy(self.backbone).merge_and_unload().save_pretrained(folder)
        else:
            self.backbone.save_pretrained(folder)


def classifier_critic(model: PreTrainedModel) -> Critic:
    """The critic that is a sequence classifier with one label, such as a reward model: its score at every position.

    Raises:
        ValueError: for another number of labels, or a classifier whose head is not one module on the last hidden state.
    """
    model = model.get_base_model() if is_peft_model(model) else model
    check_one_label(model, "value_model")
    head = next((getattr(model, name) for name in ("score", "classifier") if hasattr(model, name)), None)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"value_model: {type(model).__name__} has no linear head called score or classifier, so it gives no value "
            "at every token; leave value_model out, and the policy's backbone with a new head is the critic"
        )
    return Critic(model.base_model, head)


def policy_critic(policy: PreTrainedModel) -> Critic:
    """A copy of the policy's backbone with a head of zeros: every value starts at 0."""
    backbone = copy.deepcopy(policy.base_model)
    return Critic(backbone, zero_head(policy))


def adapter_critic(policy: nn.Module) -> Critic:
    """A second adapter on the frozen base of a policy with adapters: no second copy of the weights."""
    if ADAPTER not in policy.peft_config:
        settings = copy.deepcopy(policy.peft_config["default"])
        # Those belong to the policy's vocabulary and head; the critic has a head of its own.
        settings.trainable_token_indices = settings.modules_to_save = None
        policy.add_adapter(ADAPTER, settings)
    policy.set_adapter("default")
    base = policy.get_base_model()
    return Critic(base.base_model, zero_head(base), shared_with=policy)


def zero_head(model: PreTrainedModel) -> nn.Linear:
    """A linear head without bias whose weights are 0 (openai/lm-human-preferences starts its value head so)."""
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, bias=False)
    nn.init.zeros_(head.weight)
    return head


def load_critic(name: str) -> Critic:
    """The critic of a folder that `Critic.save` wrote, or of any sequence classifier with one label (folder or id).

    Raises:
        ValueError: for the adapter of a critic that shares its policy's base, and as `classifier_critic`.
    """
    folder = Path(name)
    if (folder / ADAPTER / "adapter_config.json").is_file():
        raise ValueError(f"value_model={name} is an adapter that shares its policy's base; name a whole critic")
    if (folder / HEAD_FILE).is_file():
        backbone = AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
        weights = load_file(folder / HEAD_FILE)
        head = nn.Linear(weights["weight"].shape[1], 1, bias="bias" in weights)
        head.load_state_dict(weights)
        return Critic(backbone, head)
    with opening(name):
        labels = AutoConfig.from_pretrained(name).num_labels
    if labels != 1:
        raise ValueError(f"value_model={name} has num_labels={labels}; it must give one value: num_labels=1")
    with opening(name):
        model = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    return classifier_critic(model)


def same_vocabulary(one, other) -> bool:
    """Whether two tokenizers give every token the same id: equal sizes say nothing about that."""
    return one.get_vocab() == other.get_vocab()


def build_critic(policy, value_model, scorers: list[tuple], tokenizer, peft_config) -> Critic:
    """The critic of a run, first match: the given one; an adapter beside the policy's; a copy of the only reward model
    if its vocabulary is the policy's; the policy's backbone with a head of zeros.

    Args:
        policy: unwrapped. value_model: None, a name, or a sequence classifier. scorers: (reward model, its tokenizer)
        among the reward functions. tokenizer: the policy's. peft_config: adapters for a critic that is none itself.
    """
    if value_model is None and is_peft_model(policy):
        return adapter_critic(policy)
    if isinstance(value_model, str):
        critic = load_critic(value_model)
    elif value_model is not None:
        critic = classifier_critic(value_model)
    elif len(scorers) == 1 and same_vocabulary(scorers[0][1], tokenizer):
        critic = classifier_critic(copy.deepcopy(scorers[0][0]))
    else:
        critic = policy_critic(policy.get_base_model() if is_peft_model(policy) else policy)
    _check_vocabulary(critic, tokenizer)
    critic.requires_grad_(True)
    if peft_config is not None:
        critic.backbone = _with_adapters(critic.backbone, peft_config)
    return critic


def _check_vocabulary(critic: Critic, tokenizer) -> None:
    size = critic.backbone.get_input_embeddings().weight.shape[0]
    if size < len(tokenizer):
        raise ValueError(
            f"value_model reads {size} token ids, the policy's tokenizer has {len(tokenizer)}: the critic reads the "
            "policy's tokens, so it must have been trained with the policy's tokenizer"
        )


def _with_adapters(backbone: PreTrainedModel, peft_config: PeftConfig) -> nn.Module:
    settings = copy.deepcopy(peft_config)
    settings.task_type = "FEATURE_EXTRACTION"
    return get_peft_model(backbone, settings)


def prepare_critic(critic: Critic, device: torch.device, args) -> None:
    """Dropout off, on the device, gradient checkpointing as the policy's."""
    if args.disable_dropout:
        disable_dropout_in_model(critic)
    critic.to(device).train(bool(args.activation_checkpointing))
    if args.activation_checkpointing and critic._policy[0] is None:
        critic.backbone.activation_checkpointing_enable()

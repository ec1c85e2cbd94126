"""Adapters (LoRA) on a model, quantised or not (QLoRA), and how they are merged into the whole model at the end."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate.utils import DistributedType, is_peft_model
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.utils import is_bitsandbytes_available
from trl import get_peft_config

from fourstage.arguments import ModelArguments
from fourstage.models.checkpoint import check_openable
from fourstage.models.encoding import conversation_ids, turn_end
from fourstage.models.facts import score_heads
from fourstage.models.fused_head import before_sharding
from fourstage.models.merging import untie
from fourstage.models.opening import loading_options

# Largest difference of a token's log-probability, in nats, that rounding may make when an adapter is merged.
MERGE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
_PROBE = "The capital of France is Paris. 3 + 4 = 7, and 12 - 5 = 7. Once upon a time there was a king who had no land."


class Run(Protocol):
    """What `finished_model` uses of `artifact.run.Run`."""

    folder: Path
    is_main: bool
    record: dict


def check_adapters(model_args: ModelArguments, scores: bool = False) -> None:
    """Raises ValueError for settings of adapters and quantisation that contradict each other, or what the parent is.

    `scores`: whether a reward model is to come out, and not a language model.
    """
    quantised = [name for name in ("load_in_4bit", "load_in_8bit") if getattr(model_args, name)]
    if not model_args.model_name_or_path and (model_args.use_peft or quantised):
        raise ValueError(
            f"{'use_peft' if model_args.use_peft else quantised[0]}: adapters on random weights learn next to nothing; "
            "leave it out, or name a trained model with --model_name_or_path"
        )
    if quantised and not model_args.use_peft:
        raise ValueError(
            f"{quantised[0]} without use_peft: quantised weights cannot be trained; add --use_peft (QLoRA), or leave "
            f"--{quantised[0]} out"
        )
    if quantised and not is_bitsandbytes_available():
        raise ValueError(f'{quantised[0]} needs bitsandbytes: pip install -e ".[quant]" -c constraints.txt')
    if quantised and model_args.dtype == "auto":
        raise ValueError(f"dtype=auto with {quantised[0]} must be float32, bfloat16 or float16: the type to compute in")
    if model_args.model_name_or_path:
        load_in = quantised[0] if quantised else None
        check_openable(model_args.model_name_or_path, scores, load_in, **loading_options(model_args))


def check_targets(model_args: ModelArguments, config: PreTrainedConfig) -> None:
    """Raises ValueError for an adapter's target that names nothing in a model of this configuration.

    PEFT would find it when the model is loaded, and then only if no target at all is there.
    """
    fields = ("lora_target_modules", "lora_target_parameters", "lora_modules_to_save")
    given = {name: getattr(model_args, name) for name in fields}
    if not model_args.use_peft or not any(given.values()) or given["lora_target_modules"] == "all-linear":
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=model_args.trust_remote_code)
    parts = [name for name, _ in model.named_modules()] + ["score", "classifier"]
    weights = [name for name, _ in model.named_parameters()]
    for field, targets in given.items():
        names = weights if field == "lora_target_parameters" else parts
        for target in [targets] if isinstance(targets, str) else targets or []:
            if not any(_is_target(name, target) for name in names):
                own = {name.rpartition(".")[0] for name, weight in model.named_parameters() if weight.ndim == 2}
                last = ", ".join(sorted({name.rpartition(".")[2] for name in own}))
                raise ValueError(f"{field}={target!r} names nothing in this model; its matrices are {last}")


def _is_target(name: str, target: str) -> bool:
    """As PEFT has it: the end of a name, or a regular expression for all of it."""
    try:
        return name == target or name.endswith(f".{target}") or re.fullmatch(target, name) is not None
    except re.error:
        return False


def adapter_config(
    model_args: ModelArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, continues_text: bool
) -> LoraConfig | None:
    """TRL's LoRA settings, or None without `use_peft`. A score head is trained too.

    With `continues_text` (a base model) the embeddings of the template's markers are trained as well. A base model has
    never seen them, so they are noise: an adapter alone would have to guess who is speaking, and not learn to stop.
    """
    config = cast(LoraConfig | None, get_peft_config(model_args))  # TRL makes no other kind
    if config is None:
        return None
    config.target_modules = config.target_modules or "all-linear"
    if continues_text:
        config.trainable_token_indices = _trainable_rows(model, tokenizer)
    if model.get_output_embeddings() is None:  # without the head of a language model: a reward model
        config.task_type = "SEQ_CLS"
        config.modules_to_save = [*(config.modules_to_save or []), *score_heads(model)]
    return config


def _trainable_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Rows of the embedding for the template's tokens; of an untied head, the rows of the tokens that end one."""
    names = {module: name.split(".")[-1] for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = {names[embedding]: template_token_ids(tokenizer)}
    if head is not None and head.weight is not embedding.weight:
        end = turn_end(tokenizer)
        rows[names[head]] = sorted({tokenizer.eos_token_id, tokenizer.eos_token_id if end is None else end})
    return rows


def keep_head_type(model: PreTrainedModel) -> None:
    """Gives a score head that trains on a quantised base the dtype of the hidden states that it reads.

    TRL 1.16 turns all trainable weights on such a base into bfloat16; without autocast the hidden states are float32.
    """
    dtype = cast(torch.Tensor, model.get_input_embeddings().weight).dtype
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            parameter.data = parameter.data.to(dtype)


def complete_tied_head(model: PreTrainedModel) -> None:
    """Gives a head that is tied to trainable embedding rows the `bias` that TRL's fused log-probabilities read.

    PEFT 0.21 wraps such a head, and the wrapper offers `weight` (with the trained rows) but not `bias`. No effect on
    other heads.
    """
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None  # as in the wrapper's own forward


def template_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the special tokens that the chat template writes, sorted.

    Example: for fourstage's template those of <|bos|>, <|eos|>, <|user|> and <|assistant|>.
    """
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = set(conversation_ids(tokenizer, turns))
    # all_special_ids has bos, eos and pad only, without the markers of a turn.
    return sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special and i in ids)


def finished_model(
    run: Run,
    trainer: Trainer,
    load: Callable[[ModelArguments, PreTrainedTokenizerBase], PreTrainedModel],
    model_args: ModelArguments,
) -> PreTrainedModel:
    """The model that a run leaves: the trained one, or its adapter merged into the whole base.

    The adapter is saved to `adapter/` first. An adapter that was trained on quantised or sharded weights is merged into
    the whole unquantised base, which `load` (`loading.load_causal_lm` or `load_reward_model`) opens.
    `run.record["adapter"]` says how far rounding, and the change of base, move the outputs on a probe text.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not is_peft_model(model):
        return model
    # Without the autocast of mixed precision, which rounds merged weights differently.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    unquantised = copy.copy(model_args)
    unquantised.load_in_4bit = unquantised.load_in_8bit = False
    if "flash" in (model_args.attn_implementation or ""):  # its kernels cannot read float32, and autocast is off here
        unquantised.attn_implementation = "eager"
        model.set_attn_implementation("eager")
    quantised = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    sharded = trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None  # every process takes part
    folder, saved = run.folder / "adapter", {"save_embedding_layers": False, "state_dict": weights}
    if run.is_main:
        model.save_pretrained(folder, selected_adapters=[model.active_adapter], **saved)
    trainer.accelerator.wait_for_everyone()
    tokenizer = cast(PreTrainedTokenizerBase, trainer.processing_class)
    trained = outputs_on_probe(model, tokenizer)
    with before_sharding(trainer):  # what is merged is whole
        if quantised or sharded:
            base = PeftModel.from_pretrained(load(unquantised, tokenizer), folder)
            model = cast(Any, base.to(model.device))  # its attributes are the base's
        adapted = outputs_on_probe(model, tokenizer) if quantised else trained
        dtype = model.dtype
        untie(model.get_base_model(), get_peft_model_state_dict(model, save_embedding_layers=False))
        merged = model.merge_and_unload()
        after = outputs_on_probe(merged, tokenizer)
    note = {"merged_into": str(dtype).removeprefix("torch."), "tolerance": MERGE_TOLERANCE[dtype]}
    note["merge_difference"] = (after - adapted).abs().max().item()
    if quantised:
        note["quantisation_difference"] = (after - trained).abs().max().item()
        note["mean_quantisation_difference"] = (after - trained).abs().mean().item()
    run.record["adapter"] = note
    print(describe_merge(note), flush=True)
    return merged


def keep_layout(model: PreTrainedModel) -> None:
    """Keeps 4-bit weights on a CPU in the layout that training reads.

    bitsandbytes 0.50 repacks them at the first evaluation, on CPUs with AVX512-BF16, for a kernel of its own; a later
    training step misreads the new layout (measured: held-out loss 1.6 before, 16 after one step). No effect on other
    models.
    """
    for module in cast("list[Any]", [*model.modules()]):  # a module's attributes are typed as tensors and modules
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@torch.no_grad()
def outputs_on_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The outputs for a fixed text: log-probabilities of its tokens in nats, or the scores of a reward model."""
    model.eval()
    ids = torch.tensor([tokenizer(_PROBE)["input_ids"]], device=model.device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float().cpu()
    if logits.ndim == 2:
        return logits.flatten()
    return logits[0, :-1].log_softmax(-1).gather(-1, ids.cpu()[0, 1:, None]).flatten()


def describe_merge(note: dict) -> str:
    """One line of text: how far merging, and quantisation, moved the outputs on the probe."""
    text = f"adapter merged into {note['merged_into']} weights: off by {note['merge_difference']:.2g} nats at most"
    if note["merge_difference"] > note["tolerance"]:
        text = f"WARNING: {text}, more than {note['tolerance']}; adapter/ on the base is the trained model"
    if "quantisation_difference" in note:
        text += (
            f"; the quantised base it was trained on differs by {note['quantisation_difference']:.2g} nats at most, "
            f"{note['mean_quantisation_difference']:.2g} on average"
        )
    return text

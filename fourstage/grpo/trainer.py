"""GRPOTrainer: TRL's trainer and algorithm with quicker rollouts and micro-batches."""

import math
from collections.abc import Callable
from typing import Any, cast

import trl
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from trl import GRPOConfig, SyncRefModelCallback

from fourstage.evaluation.generation import ignored_sampling_fields
from fourstage.models.fused_head import base_model, plain_head_pays
from fourstage.rl.batches import Batch, grouped_by_length, trimmed
from fourstage.rl.checks import check_head, check_prompts
from fourstage.rl.forward import frozen_copy, plain_head, positions
from fourstage.rl.rewards import RewardSource, prepare_rewards, show_opening
from fourstage.rl.rollouts import RolloutNumbers, SaveAtRollouts
from fourstage.rl.trl_contract import check_attributes, check_batch, check_methods

# Losses of a micro-batch that are sums over tokens, and those that are means over rows. bnpo's is a mean over the
# tokens of the micro-batch, so it depends on which rows are together.
_TOKEN_SUMS = ("dapo", "cispo", "vespo")
_ROW_MEANS = ("grpo", "sapo", "dr_grpo", "luspo")
# What a rollout of text holds: tensors with one row for each completion, and one scalar.
_TEXT_KEYS = {
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages"),
    *("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio"),
    "num_items_in_batch",
}


class GRPOTrainer(trl.GRPOTrainer):
    """TRL's GRPOTrainer (arXiv 2402.03300) with the same constructor, options and algorithm. The differences:

    - rows that have ended leave the batch that generates, and equal prompts are read once (`fourstage.rl.decoding`);
    - tokens are chosen by random numbers of their row, whatever the number of processes (`fourstage.rl.sampling`);
    - micro-batches hold rows of similar length and no column of padding alone, where the loss allows it;
    - log-probabilities come from ordinary logits of the completion where that is quicker than TRL's fused head;
    - positions count real tokens, also in left-padded rows of models with learned positions (TRL issue 6800);
    - sampling settings of the model's generation_config are ignored, and printed;
    - checkpoints are taken between rollouts, so that a resumed run equals an uninterrupted one;
    - rewards are validated: one for each completion, finite or None (`fourstage.rl.rewards`);
    - with beta above 0, the reference of a model built in memory is a copy of it.

    Metrics are means over micro-batches, as in TRL; where rows are grouped by length, short completions weigh a little
    more in `entropy`, `kl` and `clip_ratio`. Images, tools, environments, vLLM and continuous batching run TRL's code.

    Args:
        model, reward_funcs, args, train_dataset, kwargs: as in trl.GRPOTrainer.
    Raises:
        ValueError: before the first step for settings that cannot work; during training for rewards that are not
            finite numbers.
    """

    # In a built trainer; TRL and transformers declare them more loosely.
    args: GRPOConfig
    model: nn.Module

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardSource | list[RewardSource] | None = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        **kwargs: Any,
    ):
        check_methods()
        args = args if args is not None else GRPOConfig(output_dir="grpo")
        if reward_funcs is not None:
            reward_funcs, kwargs["reward_processing_classes"] = prepare_rewards(
                reward_funcs, kwargs.get("reward_processing_classes"), train_dataset
            )
        copies = args.beta != 0 and kwargs.get("peft_config") is None and _whole_model(model, args)
        settings = args.beta, args.sync_ref_model
        if copies:  # TRL would load the reference from the model's path
            args.beta, args.sync_ref_model = 0.0, False
        try:
            super().__init__(model, reward_funcs, args, train_dataset, **kwargs)
        finally:
            args.beta, args.sync_ref_model = settings
        if copies:
            self.beta, self.ref_model = args.beta, frozen_copy(self)
            if args.sync_ref_model:
                self.add_callback(SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator))
        check_attributes(self)
        show_opening(self)
        if self._is_plain():
            check_prompts(self)
            check_head(self)
        ignored = ignored_sampling_fields(self._base())
        if ignored and self.accelerator.is_main_process:
            print(f"rollouts ignore these fields of the model's generation_config: {ignored}")
        accumulation = args.gradient_accumulation_steps
        assert args.steps_per_generation  # GRPOConfig has filled it
        rollout = args.steps_per_generation * args.num_iterations
        self._numbers = RolloutNumbers()
        for callback in (SaveAtRollouts(math.lcm(accumulation, rollout) // accumulation), self._numbers):
            self.add_callback(callback)

    def _base(self, model: nn.Module | None = None) -> PreTrainedModel:
        return base_model(self.accelerator.unwrap_model(self.model if model is None else model))

    def _is_plain(self) -> bool:
        """Whether prompts are text from the data and every process holds the whole model."""
        other_sources = (self._is_vlm, self.environment_factories, self.rollout_func)
        return not (any(other_sources) or self.is_fsdp_enabled or self.is_deepspeed_enabled)

    # Rollout

    def _generate_and_score_completions(self, inputs):
        with self._numbers.choose_tokens(self, len(inputs)):
            rollout = super()._generate_and_score_completions(inputs)
        check_batch(rollout)
        return rollout

    def _prepare_inputs(self, inputs: Any) -> Batch:
        previous_rollout = self._buffered_inputs
        batch = super()._prepare_inputs(inputs)
        if not self.model.training or self._buffered_inputs is previous_rollout:
            return batch
        rollout = self._regrouped(cast(list[Batch], self._buffered_inputs))
        self._buffered_inputs = rollout
        return rollout[self._step % len(rollout)]

    def _regrouped(self, batches: list[Batch]) -> list[Batch]:
        """The micro-batches of a rollout with less padding, and the same sum of losses in each optimizer step."""
        if not all(_TEXT_KEYS.issuperset(batch) for batch in batches):
            return batches
        steps, window = len(batches), min(len(batches), self.args.gradient_accumulation_steps)
        aligned = steps % window == 0 and self.args.gradient_accumulation_steps % window == 0
        by_micro_batch = self.aux_loss_enabled or self._entropy_bonus_enabled or self.top_entropy_quantile < 1
        if not aligned or by_micro_batch or self.loss_type not in _TOKEN_SUMS + _ROW_MEANS:
            return [trimmed(batch) for batch in batches]
        return grouped_by_length(batches, window, same_sizes=self.loss_type in _ROW_MEANS)

    # Log-probabilities

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        options = {name: value for name, value in kwargs.items() if value is not None}
        score = super()._get_per_token_logps_and_entropies
        if self._is_vlm or not {"compute_entropy", "compute_aux_loss"}.issuperset(options):
            return score(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)
        base = self._base(model)

        def with_positions(*, attention_mask, **inputs):
            return model(attention_mask=attention_mask, **positions(base, attention_mask), **inputs)

        call: Callable = with_positions
        needs_fused = self.aux_loss_enabled or self._entropy_bonus_enabled or self.args.cast_lm_head_to_fp32
        if not needs_fused and plain_head_pays(base, (batch_size or len(input_ids)) * logits_to_keep):
            call = plain_head(call, logits_to_keep, self.temperature, options.get("compute_entropy", False))
        return score(call, input_ids, attention_mask, logits_to_keep, batch_size, **options)


def _whole_model(model: str | PreTrainedModel | PeftModel, args: GRPOConfig) -> bool:
    """Whether `model` is a model in memory, without adapters, that each process holds whole."""
    assert args.distributed_state is not None  # the settings make one when they are built
    sharded = args.distributed_state.distributed_type in ("FSDP", "DEEPSPEED")
    return isinstance(model, PreTrainedModel) and not sharded

"""PPOTrainer: TRL's GRPOTrainer, which generates, rewards and clips, with a critic beside the policy."""

import copy
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import GRPOTrainer
from trl.trainer.grpo_trainer import RewardFunc
from trl.trainer.utils import use_adapter

from fourstage.evaluation.generation import ignored_sampling_fields
from fourstage.models.fused_head import base_model, plain_head_pays
from fourstage.ppo import functional as F
from fourstage.ppo.config import PPOConfig
from fourstage.ppo.critic import Critic, build_critic, prepare_critic
from fourstage.ppo.metrics import policy_metrics, rollout_explained_variance, rollout_metrics
from fourstage.ppo.ptx import PtxBatches, check_ptx, language_model_nats
from fourstage.ppo.saving import load_training_state, save_training_state
from fourstage.ppo.sharding import average_gradients, gathered, shards
from fourstage.rl.batches import Batch, grouped_by_length, loss_mask, trimmed
from fourstage.rl.checks import check_head, check_launch_supported, check_prompts
from fourstage.rl.forward import frozen_copy, plain_head, positions, whole
from fourstage.rl.rewards import prepare_rewards, show_opening
from fourstage.rl.rollouts import RolloutNumbers, SaveAtRollouts
from fourstage.rl.trl_contract import check_attributes, check_batch, check_methods
from fourstage.verifiers.text import text_of


class PPOTrainer(GRPOTrainer):
    """Proximal policy optimisation of a language model (arXiv 1909.08593), on prompts in text or conversations.

    `train` repeats these six steps, of which 1 and the loop are GRPOTrainer's:

    1. Rollout: `_generate_and_score_completions`. The policy samples a completion for every prompt.
    2. Scores: `_calculate_rewards`. Each reward source scores each completion; the score is their weighted sum.
    3. Probabilities and values: `_with_advantages` asks `_logps` (policy), `_ref_logps` (reference) and `_values`
       (critic), in the micro-batches that are trained on.
    4. Reward per token: `functional.shaped_rewards`, -beta * (log policy - log reference) at each token, and the score
       at the last. The KL penalty is in the reward, never in the loss.
    5. Advantages: `functional.gae` turns rewards and values into advantages and returns; `_whiten` scales the
       advantages over all tokens of all processes.
    6. Learning, `num_iterations` passes over the micro-batches. `_compute_loss` runs the critic's backward pass on
       `_value_loss`, then returns GRPOTrainer's clipped loss of the policy, plus `_ptx_loss` if there are such rows.
       `training_step` goes back through it, and `_step_critic` steps the critic with an optimizer of its own.

    docs/ppo_in_one_page.py is the same algorithm on a toy.

    Args:
        model: the policy: a name, a model, or a PeftModel whose adapter is trained further.
        reward_funcs: reward functions as TRL calls them, sync or async, reward models or their names; one or a list.
        args: the settings. Default: PPOConfig(output_dir="ppo").
        value_model: the critic: a name or a sequence classifier with one label. Default: with adapters on the policy, a
            second adapter on the same base (under FSDP and DeepSpeed on a copy of it); else a copy of the only reward
            model, if its vocabulary is the policy's; else the policy's backbone with a head of zeros.
        value_peft_config: adapters for a critic that is not an adapter itself.
        ptx_dataset: rows with `input_ids` and `labels`, -100 where nothing is learnt, that the policy goes on learning
            beside the rewards: PPO-ptx (arXiv 2203.02155, equation 2), with the weight args.ptx_coef.
        kwargs: as GRPOTrainer: train_dataset (column `prompt`, other columns go to the reward functions),
            eval_dataset, processing_class, reward_processing_classes, peft_config, callbacks, optimizers.
    Raises:
        ValueError: before the first step, for what is not supported or cannot work; during training, for rewards that
            are not finite numbers.
    """

    _tag_names = ["trl", "ppo"]
    _name = "PPO"
    _paper = {"title": "Fine-Tuning Language Models from Human Preferences", "id": "1909.08593", "citation": ""}

    # In a built trainer; TRL and transformers declare them more loosely.
    args: PPOConfig
    model: nn.Module
    ref_model: nn.Module | None
    lr_scheduler: LambdaLR
    reward_processing_classes: list[PreTrainedTokenizerBase]
    _buffered_inputs: list[Batch]  # None before the first rollout

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunc | list[RewardFunc],
        args: PPOConfig | None = None,
        *,
        value_model: str | PreTrainedModel | None = None,
        value_peft_config: PeftConfig | None = None,
        ptx_dataset: Dataset | None = None,
        **kwargs: Any,
    ):
        check_methods()
        check_ptx(ptx_dataset)
        args = args if args is not None else PPOConfig(output_dir="ppo")
        if isinstance(kwargs.get("processing_class"), ProcessorMixin):
            raise ValueError("processing_class must be a tokenizer, not a processor: PPOTrainer takes text models only")
        classes, prompts = kwargs.get("reward_processing_classes"), kwargs.get("train_dataset")
        reward_funcs, kwargs["reward_processing_classes"] = prepare_rewards(reward_funcs, classes, prompts)
        whole_scorers = copy.deepcopy(reward_funcs) if args.deepspeed_plugin else None  # ZeRO-3 shards those given
        value_peft_config = copy.deepcopy(value_peft_config)  # PEFT writes into the policy's, which may be the same one
        adapters = kwargs.get("peft_config") is not None or is_peft_model(model)
        beta = args.beta
        if not adapters:
            args.beta = 0.0  # else GRPO loads a reference from the policy's path, which it may not have; see below
        try:
            super().__init__(model, reward_funcs, args, **kwargs)
        finally:
            args.beta = beta
        self.beta = 0.0  # GRPO's own KL term in the loss would count the penalty twice
        check_launch_supported(self, value_peft_config is not None)
        for check in (check_attributes, show_opening, check_prompts, check_head):
            check(self)
        policy = self.accelerator.unwrap_model(self.model)
        if args.beta and not adapters:
            self.ref_model = frozen_copy(self)  # also for a model that was built in memory
        ignored = ignored_sampling_fields(base_model(policy))
        if ignored and self.accelerator.is_main_process:
            print(f"rollouts ignore these fields of the policy's generation_config: {ignored}")
        self._add_critic(policy, value_model, value_peft_config, whole_scorers or self.reward_funcs)
        ptx_size = args.ptx_batch_size or args.per_device_train_batch_size
        self._ptx = None if ptx_dataset is None else PtxBatches(ptx_dataset, args.seed, ptx_size)
        self._numbers = RolloutNumbers()
        for callback in (SaveAtRollouts(args.steps_per_update), self._numbers):
            self.add_callback(callback)

    @property
    def value_model(self) -> Critic:
        """The critic."""
        return self._critic[0]

    def _add_critic(
        self,
        policy: PreTrainedModel | PeftModel,
        value_model: str | PreTrainedModel | None,
        value_peft_config: PeftConfig | None,
        scorers: list,
    ) -> None:
        """The critic on its device, with an optimizer of its own. `scorers` are the reward functions, models whole."""
        pairs = zip(scorers, self.reward_processing_classes, strict=True)
        models = [(self.accelerator.unwrap_model(m), t) for m, t in pairs if isinstance(m, nn.Module)]
        critic = build_critic(policy, value_model, models, self._tokenizer, value_peft_config, shards(self))
        self._critic = [critic]  # in a list: it is not part of the policy, which gets saved and wrapped
        prepare_critic(critic, self.accelerator, self.args, sharded=shards(self))
        self._value_parameters = critic.trained()
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        options = {**options, "lr": self.args.value_learning_rate, "weight_decay": self.args.weight_decay}
        self.value_optimizer = kind(self._value_parameters.values(), **options)

    # Rollout

    def _calculate_rewards(
        self, inputs: list[dict], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # of all processes
        first = self.accelerator.process_index * len(prompts)
        self._rewards = rewards[first : first + len(prompts)]
        for i, function in enumerate(self.reward_funcs):
            broken = ~torch.isfinite(self._rewards[:, i])
            if isinstance(function, nn.Module) and broken.any():
                row, name = int(broken.long().argmax()), self.reward_func_names[i] or type(function).__name__
                raise ValueError(
                    f"reward model {name} gave the score {self._rewards[row, i].item()} to "
                    f"{text_of(completions[row])[:200]!r}: scores must be finite numbers, so check its weights"
                )
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict]) -> Batch:
        with self._numbers.choose_tokens(self, len(inputs)):
            rollout = super()._generate_and_score_completions(inputs)
        check_batch(rollout)
        weights = self.reward_weights.to(self._rewards.device)
        used = self._rewards[:, weights != 0]
        scorable = ~used.isnan().all(dim=1)
        scores = (used * weights[weights != 0]).nansum(dim=1)
        if self.args.reward_clip_range is not None:
            scores = scores.clamp(*self.args.reward_clip_range)
        # A completion that no reward function can score is masked: it enters no loss, no mean and no whitening.
        rollout["completion_mask"] = rollout["completion_mask"] * scorable[:, None]
        rollout["num_items_in_batch"] = self.accelerator.gather(loss_mask(rollout).sum()).sum()
        return rollout | {"scores": scores}

    def _prepare_inputs(self, inputs: Any) -> Batch:
        previous_rollout = self._buffered_inputs
        batch = super()._prepare_inputs(inputs)
        if not self.model.training:
            return self._with_advantages([trimmed(batch)], "eval")[0]
        if self._buffered_inputs is previous_rollout:
            return batch
        # A new rollout. Its probabilities are computed in the micro-batches that are trained on, so that the ratio is
        # exactly 1 until the weights change.
        args, batches = self.args, self._buffered_inputs
        if self.loss_type != "bnpo":  # whose mean over a micro-batch depends on the rows in it
            batches = grouped_by_length(batches, args.gradient_accumulation_steps, self.loss_type != "dapo")
        self._buffered_inputs = self._with_advantages(batches, "train")
        return self._buffered_inputs[self._step % args.micro_batches_per_rollout]

    @torch.no_grad()
    def _with_advantages(self, batches: list[Batch], mode: str) -> list[Batch]:
        """Adds old_per_token_logps, values, advantages and returns, each (B, T), to the micro-batches of a rollout."""
        args, masks = self.args, [loss_mask(batch) for batch in batches]
        kls, rewards = [], []
        for batch, mask in zip(batches, masks, strict=True):
            logps = batch["old_per_token_logps"] = self._logps(self.model, batch)
            with self.value_model.active():
                batch["values"] = self._values(batch).masked_fill(~mask, 0.0)
            ref_logps = self._ref_logps(batch) if args.beta else logps
            kls.append(F.per_token_kl(logps, ref_logps, mask, args.kl_estimator))
            scores = batch["scores"] = batch["scores"] - self._eos_penalty(batch, mask)
            rewards.append(F.shaped_rewards(scores, kls[-1], mask, args.beta))
        if args.whiten_rewards:
            rewards = self._whiten(rewards, masks, shift_mean=False)
        for batch, mask, reward in zip(batches, masks, rewards, strict=True):
            batch["advantages"], batch["returns"] = F.gae(reward, batch["values"], mask, args.gamma, args.lam)
        self._log_rollout(batches, masks, kls, mode)
        if args.whiten_advantages:
            whitened = self._whiten([batch["advantages"] for batch in batches], masks)
            for batch, advantages in zip(batches, whitened, strict=True):
                batch["advantages"] = advantages
        return batches

    def _whiten(self, tensors: list[Tensor], masks: list[Tensor], shift_mean: bool = True) -> list[Tensor]:
        """`functional.masked_whiten` over all micro-batches of all processes."""
        x, mask = torch.cat([t.flatten() for t in tensors]), torch.cat([m.flatten() for m in masks])
        parts = F.masked_whiten(x, mask, shift_mean, self._reduce).split([t.numel() for t in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def _ended(self, batch: Batch, mask: Tensor) -> Tensor:
        return F.ended(batch["completion_ids"], mask, self.eos_token_ids)

    def _eos_penalty(self, batch: Batch, mask: Tensor) -> Tensor:
        return (~self._ended(batch, mask)).float() * (self.args.missing_eos_penalty or 0.0)

    # Log-probabilities and values

    def _get_per_token_logps_and_entropies(
        self,
        model: Callable,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if batch_size is not None and not self.use_vllm:
            # Only GRPO's rollout gives a batch size. It has no micro-batches yet: `_with_advantages` does this later.
            return None, None, None
        if batch_size is None:
            base = base_model(self.accelerator.unwrap_model(model))
            model = functools.partial(model, **positions(base, attention_mask))
            reported_only = not (self.aux_loss_enabled or self._entropy_bonus_enabled)
            if reported_only and plain_head_pays(base, len(input_ids) * logits_to_keep):
                model = plain_head(model, logits_to_keep, self.temperature, kwargs.get("compute_entropy", False))
        result = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs
        )
        self._last_logps = result[0].detach()
        return result

    def _logps(self, model: nn.Module, batch: Batch) -> Tensor:
        ids, mask = whole(batch)
        logps, _, _ = self._get_per_token_logps_and_entropies(model, ids, mask, batch["completion_ids"].size(1))
        assert logps is not None  # None only with a batch size
        return logps

    def _ref_logps(self, batch: Batch) -> Tensor:
        if self.ref_model is not None:
            return self._logps(self.ref_model, batch)
        policy = self.accelerator.unwrap_model(self.model)
        with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
            return self._logps(self.model, batch)

    def _values(self, batch: Batch) -> Tensor:
        """(B, T) value of the state before each token of the completion, hence the shift by one."""
        first = batch["prompt_ids"].size(1) - 1
        with self.accelerator.autocast():
            return self.value_model(*whole(batch))[:, first:-1]

    # Optimisation

    def _compute_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        mode = "train" if self.model.training else "eval"
        # The critic's backward pass ends before the policy's forward pass begins: memory is the larger of the two.
        with self.value_model.active():
            value_loss = self._value_loss(inputs, mode)
            if mode == "train":
                value_loss.backward()
        loss = super()._compute_loss(model, inputs)
        self._log_policy(inputs, mode)
        if self._ptx is not None and mode == "train":
            loss = loss + self._ptx_loss(model, self._ptx)
        warming_up = mode == "train" and self.state.global_step < self.args.critic_warmup_steps
        return loss * 0.0 if warming_up else loss

    def _ptx_loss(self, model: nn.Module, rows: PtxBatches) -> Tensor:
        """The next rows' share in the loss of an optimizer step, a mean over the tokens of all its processes' rows."""
        parts, processes = self.args.gradient_accumulation_steps, self.accelerator.num_processes
        first = self.state.global_step * parts * processes  # batch of the step, also after a resume
        place = first + self._step % parts * processes + self.accelerator.process_index
        found = language_model_nats(model, *(part.to(self.accelerator.device) for part in rows.at(place)))
        nats, tokens = self._reduce(found.detach()).tolist()
        self._metrics["train"]["loss/ptx_avg"].append(nats / max(tokens, 1.0))
        learnt = rows.tokens(first, self.current_gradient_accumulation_steps * processes)
        return self.args.ptx_coef * found[0] * processes / learnt

    def _value_loss(self, inputs: Batch, mode: str) -> Tensor:
        """The critic's loss: the mean over the tokens of an optimizer step, as GRPO's dapo loss for the policy.

        The number of tokens is that of an average step of the rollout, so that every token of it has the same weight.
        """
        mask = loss_mask(inputs)
        losses, clipped = F.value_losses(
            self._values(inputs), inputs["values"], inputs["returns"], self.args.cliprange_value
        )
        self._log_means(mode, mask, {"loss/value_avg": losses.detach(), "val/clipfrac_avg": clipped.float()})
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if mode == "train":
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.micro_batches_per_rollout
        return losses.masked_fill(~mask, 0.0).sum() / tokens

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._step_critic()
        return loss

    def _step_critic(self) -> None:
        parameters = list(self._value_parameters.values())
        if self.accelerator.num_processes > 1 and not shards(self):
            average_gradients(parameters, self.accelerator)
        if self.args.max_grad_norm:
            norm = nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
            self._metrics["train"]["val/grad_norm"].append(gathered(norm).item())
        rate = self.args.value_learning_rate
        base, now = self.lr_scheduler.base_lrs[0], self.lr_scheduler.get_last_lr()[0]
        assert rate is not None  # PPOConfig fills it
        for group in self.value_optimizer.param_groups:  # the schedule is the policy's
            group["lr"] = rate * (now / base if base else 1.0)
        self.value_optimizer.step()
        self.value_optimizer.zero_grad(set_to_none=True)

    # Metrics

    def _reduce(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums, reduction="sum")

    def _log_means(self, mode: str, mask: Tensor, named: dict[str, Tensor]) -> None:
        """Logs masked means over all processes, which are summed in one message."""
        values = torch.stack([x.masked_fill(~mask, 0.0).sum() for x in named.values()] + [mask.sum().float()])
        *sums, count = self._reduce(values).tolist()
        for name, total in zip(named, sums, strict=True):
            self._metrics[mode][name].append(total / max(count, 1.0))

    def _log_rollout(self, batches: list[Batch], masks: list[Tensor], kls: list[Tensor], mode: str) -> None:
        """Logs means over the completions of a rollout."""
        scorable = torch.cat([mask.any(dim=1) for mask in masks])
        ended = torch.cat([self._ended(batch, mask) for batch, mask in zip(batches, masks, strict=True)])
        named = rollout_metrics(batches, masks, kls, self.args.beta) | {"val/eos_ratio": ended.float()}
        self._log_means(mode, scorable, named)
        variance = rollout_explained_variance(batches, masks, self._reduce)
        self._metrics[mode]["val/explained_variance"].append(variance.item())
        self._metrics[mode].pop("frac_reward_zero_std", None)  # about groups, which PPO does not have
        if mode == "train" and self._metrics[mode]["val/eos_ratio"][-1] == 0:
            warnings.warn(
                f"no completion of this rollout ends within max_completion_length={self.args.max_completion_length}: "
                "all were cut off. Raise it, or teach the policy to end with missing_eos_penalty, which is subtracted "
                "from the score of every completion that is cut off (1.0 suits scores of about that size)",
                stacklevel=2,
            )

    def _log_policy(self, inputs: Batch, mode: str) -> None:
        named = policy_metrics(self._last_logps, inputs, self.epsilon_low, self.epsilon_high)
        self._log_means(mode, loss_mask(inputs), named)
        metrics = self._metrics[mode]
        metrics["val/ratio_var"][-1] -= metrics["val/ratio"][-1] ** 2

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.save_value_model and not _internal_call:
            folder = output_dir or self.args.output_dir
            assert folder is not None  # transformers fills it
            self.value_model.save(Path(folder) / "value", self.args.should_save)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        save_training_state(Path(output_dir), self._value_parameters, self.value_optimizer, self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_training_state(Path(checkpoint), self._value_parameters, self.value_optimizer)

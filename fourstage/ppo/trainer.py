"""PPOTrainer: TRL's GRPOTrainer, which generates, rewards and clips, with a critic beside the policy."""

import copy
import functools
import warnings
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin
from trl import GRPOTrainer
from trl.trainer.utils import use_adapter

from fourstage.evaluation.generation import ignored_sampling_fields, plain_sampling
from fourstage.ppo import functional as F
from fourstage.ppo.config import PPOConfig
from fourstage.ppo.critic import build_critic, prepare_critic
from fourstage.rl.batches import Batch, grouped_by_length, loss_mask, trimmed
from fourstage.rl.checks import check_head, check_launch_supported, check_prompts
from fourstage.rl.forward import base_model, frozen_copy, plain_head, plain_head_pays, positions, whole
from fourstage.rl.rewards import prepare_rewards
from fourstage.rl.rollouts import SaveAtRollouts
from fourstage.rl.trl_contract import check_attributes, check_batch, check_methods
from fourstage.verifiers.text import text_of

VALUE_FILE, VALUE_OPTIMIZER_FILE = "value_model.safetensors", "value_optimizer.pt"


class PPOTrainer(GRPOTrainer):
    """Proximal policy optimisation of a language model (arXiv 1909.08593), on prompts in text or conversations.

    A rollout is generated and rewarded by GRPOTrainer. Here it gets log-probabilities, KL and values, micro-batch by
    micro-batch, then advantages; GRPOTrainer's clipped loss trains the policy on them, and the critic has a backward
    pass, gradient clipping and optimizer of its own. The KL penalty is in the reward, never in the loss.

    Args:
        model: the policy: a name, a model, or a PeftModel whose adapter goes on training.
        reward_funcs: reward functions as TRL calls them, sync or async, reward models or their names; one or a list.
        args: PPOConfig.
        value_model: the critic: a name or a sequence classifier with one label. Default: with adapters on the policy, a
            second adapter on the same base; else a copy of the only reward model, if its vocabulary is the policy's;
            else the policy's backbone with a head of zeros.
        value_peft_config: adapters for a critic that is no adapter itself.
        kwargs: as GRPOTrainer: train_dataset (column `prompt`, other columns go to the reward functions),
            eval_dataset, processing_class, reward_processing_classes, peft_config, callbacks, optimizers.
    Raises:
        ValueError: before the first step, for what is not supported or cannot work; during training, for rewards that
            are no finite numbers.
    """

    _tag_names = ["trl", "ppo"]
    _name = "PPO"
    _paper = {"title": "Fine-Tuning Language Models from Human Preferences", "id": "1909.08593", "citation": ""}

    def __init__(self, model, reward_funcs, args=None, *, value_model=None, value_peft_config=None, **kwargs):
        check_methods()
        args = args if args is not None else PPOConfig(output_dir="ppo")
        if isinstance(kwargs.get("processing_class"), ProcessorMixin):
            raise ValueError("processing_class is a processor of images or sound; PPOTrainer takes text models only")
        reward_funcs, kwargs["reward_processing_classes"] = prepare_rewards(
            reward_funcs, kwargs.get("reward_processing_classes"), kwargs.get("train_dataset")
        )
        value_peft_config = copy.deepcopy(value_peft_config)  # PEFT writes into the policy's, which may be the same one
        # GRPO loads the reference from the policy's path, which a model built in memory has not: a copy is made below.
        adapters = kwargs.get("peft_config") is not None or is_peft_model(model)
        beta, args.beta = args.beta, args.beta if adapters else 0.0
        try:
            super().__init__(model, reward_funcs, args, **kwargs)
        finally:
            args.beta = beta
        self.beta = 0.0  # GRPO's own KL term in the loss would count the penalty twice
        check_attributes(self)
        check_launch_supported(self)
        check_prompts(self)
        check_head(self)
        policy = self.accelerator.unwrap_model(self.model)
        if args.beta and not adapters:
            self.ref_model = frozen_copy(self)
        ignored = ignored_sampling_fields(base_model(policy))
        if ignored and self.accelerator.is_main_process:
            print(f"rollouts ignore these fields of the policy's generation_config: {ignored}")
        # In a list: no part of the policy, which is what gets saved and wrapped.
        self._critic = [self._build_critic(policy, value_model, value_peft_config)]
        prepare_critic(self.value_model, self.accelerator.device, args)
        self._value_parameters = self.value_model.trained()
        kind, options = self.get_optimizer_cls_and_kwargs(args)
        options = {**options, "lr": args.value_learning_rate, "weight_decay": args.weight_decay}
        self.value_optimizer = kind(self._value_parameters.values(), **options)
        self.add_callback(SaveAtRollouts(args.steps_per_update))

    @property
    def value_model(self) -> nn.Module:
        """The critic."""
        return self._critic[0]

    def _build_critic(self, policy: PreTrainedModel, value_model, value_peft_config) -> nn.Module:
        pairs = zip(self.reward_funcs, self.reward_processing_classes, strict=True)
        scorers = [(self.accelerator.unwrap_model(m), t) for m, t in pairs if isinstance(m, nn.Module)]
        return build_critic(policy, value_model, scorers, self._tokenizer, value_peft_config)

    # Rollout

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # of all processes
        first = self.accelerator.process_index * len(prompts)
        self._rewards = rewards[first : first + len(prompts)]
        for i, function in enumerate(self.reward_funcs):
            broken = ~torch.isfinite(self._rewards[:, i])
            if isinstance(function, nn.Module) and broken.any():
                text = text_of(completions[int(broken.long().argmax())])
                raise ValueError(f"reward model {self.reward_func_names[i]} gave no finite score for {text[:200]!r}")
        return rewards

    def _generate_and_score_completions(self, inputs):
        with plain_sampling(base_model(self.accelerator.unwrap_model(self.model))):
            rollout = super()._generate_and_score_completions(inputs)
        check_batch(rollout)
        weights = self.reward_weights.to(self._rewards.device)
        used = self._rewards[:, weights != 0]
        scorable = ~used.isnan().all(dim=1)
        scores = (used * weights[weights != 0]).nansum(dim=1)
        if self.args.reward_clip_range is not None:
            scores = scores.clamp(*self.args.reward_clip_range)
        # What no reward function can score is not there at all: for no loss, no mean, no whitening.
        rollout["completion_mask"] = rollout["completion_mask"] * scorable[:, None]
        rollout["num_items_in_batch"] = self.accelerator.gather(loss_mask(rollout).sum()).sum()
        return rollout | {"scores": scores}

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return self._with_advantages([trimmed(inputs)], "eval")[0]
        if self._buffered_inputs is before:
            return inputs
        # A new rollout. It is scored in the micro-batches that it is trained in: their probabilities are equal to the
        # last bit as long as the weights are.
        batches = self._buffered_inputs
        if self.loss_type != "bnpo":  # whose mean over a micro-batch depends on the rows in it
            batches = grouped_by_length(batches, self.args.gradient_accumulation_steps, self.loss_type != "dapo")
        self._buffered_inputs = self._with_advantages(batches, "train")
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

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
        """Over all micro-batches of all processes."""
        x, mask = torch.cat([t.flatten() for t in tensors]), torch.cat([m.flatten() for m in masks])
        parts = F.masked_whiten(x, mask, shift_mean, self._reduce).split([t.numel() for t in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def _ended(self, batch: Batch, mask: Tensor) -> Tensor:
        """(B,) whether a completion ends by itself: its last token is one of the policy's end tokens."""
        last = batch["completion_ids"].gather(1, F.last_token(mask)[:, None])[:, 0]
        return torch.isin(last, torch.tensor(self.eos_token_ids, device=last.device)) & mask.any(dim=1)

    def _eos_penalty(self, batch: Batch, mask: Tensor) -> Tensor:
        return (~self._ended(batch, mask)).float() * (self.args.missing_eos_penalty or 0.0)

    # Log-probabilities and values

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        if batch_size is not None and not self.use_vllm:
            return None, None, None  # GRPO asks during the rollout, before micro-batches exist: `_with_advantages` does
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
        return self._get_per_token_logps_and_entropies(model, ids, mask, batch["completion_ids"].size(1))[0]

    def _ref_logps(self, batch: Batch) -> Tensor:
        if self.ref_model is not None:
            return self._logps(self.ref_model, batch)
        policy = self.accelerator.unwrap_model(self.model)
        with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
            return self._logps(self.model, batch)

    def _values(self, batch: Batch) -> Tensor:
        """(B, T) value of the state before each token of the completion: hence the shift by one."""
        first = batch["prompt_ids"].size(1) - 1
        with self.accelerator.autocast():
            return self.value_model(*whole(batch))[:, first:-1]

    # Optimisation

    def _compute_loss(self, model, inputs):
        mode = "train" if self.model.training else "eval"
        with (
            self.value_model.active()
        ):  # its backward pass is over before the policy's forward: memory is the larger one
            value_loss = self._value_loss(inputs, mode)
            if mode == "train":
                value_loss.backward()
        loss = super()._compute_loss(model, inputs)
        self._log_policy(inputs, mode)
        warming_up = mode == "train" and self.state.global_step < self.args.critic_warmup_steps
        return loss * 0.0 if warming_up else loss

    def _value_loss(self, inputs: Batch, mode: str) -> Tensor:
        """Mean loss per token over what an optimizer step accumulates, as GRPO's dapo loss takes it for the policy."""
        mask = loss_mask(inputs)
        losses, clipped = F.value_losses(
            self._values(inputs), inputs["values"], inputs["returns"], self.args.cliprange_value
        )
        self._log_means(mode, mask, {"loss/value_avg": losses.detach(), "val/clipfrac_avg": clipped.float()})
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if mode == "train":
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return losses.masked_fill(~mask, 0.0).sum() / tokens

    def training_step(self, model, inputs, num_items_in_batch):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._step_critic()
        return loss

    def _step_critic(self) -> None:
        parameters = list(self._value_parameters.values())
        if self.accelerator.num_processes > 1:
            self._average_gradients(parameters)
        if self.args.max_grad_norm:
            norm = nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
            self._metrics["train"]["val/grad_norm"].append(norm.item())
        base, now = self.lr_scheduler.base_lrs[0], self.lr_scheduler.get_last_lr()[0]
        for group in self.value_optimizer.param_groups:  # the schedule is the policy's
            group["lr"] = self.args.value_learning_rate * (now / base if base else 1.0)
        self.value_optimizer.step()
        self.value_optimizer.zero_grad(set_to_none=True)

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """One message for all of them. The critic is in no DDP wrapper: it is called outside the policy's forward."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        mean = self.accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), reduction="mean")
        for parameter, part in zip(parameters, mean.split([grad.numel() for grad in grads]), strict=True):
            parameter.grad = part.view_as(parameter)

    # Metrics, with the names of TRL 1.12's PPOTrainer

    def _reduce(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums, reduction="sum")

    def _log_means(self, mode: str, mask: Tensor, named: dict[str, Tensor]) -> None:
        """Masked means over all processes, in one message."""
        values = torch.stack([x.masked_fill(~mask, 0.0).sum() for x in named.values()] + [mask.sum().float()])
        *sums, count = self._reduce(values).tolist()
        for name, total in zip(named, sums, strict=True):
            self._metrics[mode][name].append(total / max(count, 1.0))

    def _log_rollout(self, batches: list[Batch], masks: list[Tensor], kls: list[Tensor], mode: str) -> None:
        """Once a rollout, per completion: sums over its tokens."""
        scorable = torch.cat([mask.any(dim=1) for mask in masks])
        kl = torch.cat([kl.sum(dim=1) for kl in kls])
        scores = torch.cat([batch["scores"] for batch in batches])
        surprise = [
            -b["old_per_token_logps"].masked_fill(~m, 0.0).sum(dim=1) for b, m in zip(batches, masks, strict=True)
        ]
        ended = torch.cat([self._ended(batch, mask) for batch, mask in zip(batches, masks, strict=True)])
        named = {
            "objective/kl": kl,
            "objective/entropy": torch.cat(surprise),
            "objective/non_score_reward": -self.args.beta * kl,
            "objective/scores": scores,
            "objective/rlhf_reward": scores - self.args.beta * kl,
            "val/eos_ratio": ended.float(),
        }
        self._log_means(mode, scorable, named)
        flat = [torch.cat([b[name].flatten() for b in batches]) for name in ("values", "returns")]
        variance = F.explained_variance(*flat, torch.cat([mask.flatten() for mask in masks]), self._reduce)
        self._metrics[mode]["val/explained_variance"].append(variance.item())
        self._metrics[mode].pop("frac_reward_zero_std", None)  # about groups, of which there are none
        if mode == "train" and self._metrics[mode]["val/eos_ratio"][-1] == 0:
            warnings.warn(
                f"no completion of this rollout ends within max_completion_length={self.args.max_completion_length}: "
                "all were cut off. Raise it, or teach the policy to end with missing_eos_penalty, which is taken off "
                "the score of every completion that does not (1.0 suits scores of about that size)",
                stacklevel=2,
            )

    def _log_policy(self, inputs: Batch, mode: str) -> None:
        difference = self._last_logps - inputs["old_per_token_logps"]
        ratio = difference.exp()
        losses, clipped = F.policy_losses(ratio, inputs["advantages"], self.epsilon_low, self.epsilon_high)
        named = {
            "policy/approxkl_avg": 0.5 * difference**2,
            "policy/clipfrac_avg": clipped.float(),
            "loss/policy_avg": losses,
            "val/ratio": ratio,
            "val/ratio_var": ratio**2,
        }
        self._log_means(mode, loss_mask(inputs), named)
        metrics = self._metrics[mode]
        metrics["val/ratio_var"][-1] -= metrics["val/ratio"][-1] ** 2

    # Saving

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if self.args.save_value_model and not _internal_call and self.args.should_save:
            self.value_model.save(Path(output_dir or self.args.output_dir) / "value")

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            weights = {name: p.detach().cpu().contiguous() for name, p in self._value_parameters.items()}
            save_file(weights, Path(output_dir) / VALUE_FILE)
            torch.save(self.value_optimizer.state_dict(), Path(output_dir) / VALUE_OPTIMIZER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        if not (folder / VALUE_OPTIMIZER_FILE).is_file():
            raise ValueError(f"checkpoint {checkpoint} has no {VALUE_OPTIMIZER_FILE}: no PPO run can go on from it")
        weights = load_file(folder / VALUE_FILE)
        with torch.no_grad():
            for name, parameter in self._value_parameters.items():
                parameter.copy_(weights[name])
        state = torch.load(folder / VALUE_OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        self.value_optimizer.load_state_dict(state)

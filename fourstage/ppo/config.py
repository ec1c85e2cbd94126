"""Settings of PPO: TRL's GRPOConfig with fields for the critic and the reward per token, less what PPO cannot use."""

from dataclasses import dataclass

from trl import GRPOConfig

from fourstage.arguments import RewardArguments, RunDefaults, choose_by_device, option
from fourstage.ranges import Range, check_values


@dataclass
class PPOConfig(GRPOConfig):
    """GRPOConfig with PPO's defaults, which are those of TRL 1.12's PPOConfig unless the field says otherwise.

    An update makes a rollout of per_device_train_batch_size x steps_per_generation completions in each process, and
    num_iterations passes over it. `max_steps` counts optimizer steps, and an update has `steps_per_update` of them.

    Raises:
        ValueError: if a value is out of its range, contradicts another or cannot work with PPO.
    """

    _argument_group_name = "training"

    learning_rate: float = option(3e-6, "Peak learning rate of the policy.")
    lr_scheduler_type: str = option("linear", "Any scheduler of transformers; the critic's rate follows it.")
    num_generations: int | None = option(1, "Completions per prompt: the critic is the baseline, so one is enough.")
    num_iterations: int = option(4, "Passes over each rollout (num_ppo_epochs of TRL 1.12).")
    beta: float = option(0.05, "Weight of the KL penalty in the reward (kl_coef of TRL 1.12).")
    scale_rewards: str = option("none", "Only none: advantages come from the critic, not from groups.")
    disable_dropout: bool = option(True, "Turn dropout off: a ratio of probabilities needs a fixed network.")
    logging_steps: float = option(0, "Optimizer steps between log lines; 0: one line per update.")
    gradient_checkpointing: bool = option(None, "Trade compute for memory. Default: on for a GPU.")
    bf16: bool | None = option(
        None,
        "bfloat16 mixed precision. Default: on where the GPU, or in a recipe the CPU (from 0.5M on), multiplies it.",
    )
    value_learning_rate: float | None = option(None, "Peak learning rate of the critic. Default: learning_rate.")
    cliprange_value: float | None = option(0.2, "How far a value may move from the one at the rollout; none: no limit.")
    gamma: float = option(1.0, "Discount of later rewards.")
    lam: float = option(0.95, "Lambda of the advantage estimates (GAE).")
    kl_estimator: str = option("k1", "KL per token: k1 (log-ratio) or k3 (never negative, biased as a reward).")
    whiten_rewards: bool = option(False, "Scale rewards to variance 1 before the advantages are estimated.")
    whiten_advantages: bool = option(True, "Scale advantages to mean 0 and variance 1 over the rollout.")
    missing_eos_penalty: float | None = option(None, "Subtracted from the score of a completion that does not end.")
    reward_clip_range: list[float] | None = option(None, "Lowest and highest score; scores beyond them are clipped.")
    critic_warmup_steps: int = option(0, "Optimizer steps at the start in which only the critic learns.")
    save_value_model: bool = option(True, "Save the critic in value/ with the policy.")
    ptx_coef: float = option(0.5, "With ptx data: weight of the language-model loss on them, beside PPO's loss.")
    ptx_batch_size: int | None = option(
        None, "With ptx data: rows a device takes with each batch of completions. Default: as many."
    )

    def __post_init__(self) -> None:
        check_values(self, logging_steps=Range("0 or more", lambda x: x >= 0))
        _check_fields(self)
        choose_by_device(self, checkpointing_on_gpu=True)
        # GRPO refuses groups of one, since it compares completions within a group; PPO compares with the critic. So
        # GRPO's own check sees a number that divides the batch, and the true number is put back afterwards.
        group_size, logging_steps = self.num_generations, self.logging_steps
        self.num_generations_eval = self.num_generations_eval or group_size
        self.num_generations = self._group_size_for_grpo()
        self.logging_steps = logging_steps or 1  # transformers refuses 0
        super().__post_init__()
        self.num_generations = group_size
        self.logging_steps = logging_steps or self.steps_per_update
        if self.micro_batches_per_rollout % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation={self.micro_batches_per_rollout} must be a multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}: their ratio is the number of "
                "minibatches of a rollout, and must be whole"
            )
        if self.value_learning_rate is None:
            self.value_learning_rate = self.learning_rate

    @property
    def steps_per_update(self) -> int:
        """Optimizer steps between two rollouts: passes times minibatches."""
        return self.num_iterations * self.micro_batches_per_rollout // self.gradient_accumulation_steps

    @property
    def micro_batches_per_rollout(self) -> int:
        """Batches of per_device_train_batch_size that one process has in a rollout."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    def _group_size_for_grpo(self) -> int | None:
        batch = self.generation_batch_size
        if batch is None:
            batch = self.per_device_train_batch_size * self.micro_batches_per_rollout
        if self.num_generations == 1 and batch == 1:
            raise ValueError(
                "per_device_train_batch_size=1 makes a rollout of one completion, which has no variance: raise it to 2 "
                "or more"
            )
        return batch if self.num_generations == 1 else self.num_generations


@dataclass
class PPORunConfig(RunDefaults, RewardArguments, PPOConfig):
    """PPOConfig for recipes/ppo.py, with the source of the rewards, and when the run is evaluated, saved, resumed."""

    output_dir: str | None = option("runs/ppo", "The run folder: everything the stage leaves is in it.")
    value_model_name_or_path: str | None = option(
        None, "Critic: value/ of an earlier run or a classifier with one label. Default: a copy of the reward model."
    )
    ptx_dataset_name: str | None = option(
        None, "PPO-ptx: conversations that the policy goes on learning, such as stage 2's, so that it forgets less."
    )
    ptx_dataset_config: str | None = option(None, "Configuration name of that data set on the Hub.")
    overlong: str = option("drop", "Prompts that leave no room for max_completion_length: drop (counted) or error.")
    max_completion_length: int | None = option(128, "Longest completion in tokens.")
    max_eval_rows: int = option(64, "Held-out prompts that an evaluation answers.")
    learning_rate: float = option(
        1e-5, "Peak learning rate of the policy. Random weights trained here: 1e-4; 1B and more: 1e-6; LoRA: 1e-4."
    )
    eval_steps: float | None = option(0.25, "Steps between evaluations, or a share of all steps if below 1.")


_ALLOWED: dict[str, tuple[tuple, str]] = {
    "kl_estimator": (("k1", "k3"), "k1 is the gradient of the reverse KL"),
    "loss_type": (("dapo", "bnpo", "grpo", "dr_grpo"), "other losses do not use an advantage for each token"),
    "importance_sampling_level": (("token",), "values and advantages are per token"),
    "multi_objective_aggregation": (("sum_then_normalize",), "the critic learns the weighted sum of the rewards"),
    "scale_rewards": (("none", False), "advantages come from the critic, not from groups"),
    "sync_ref_model": ((False,), "the penalty is the distance from the starting policy, which must not move"),
    "fp16": ((False,), "the critic's own optimizer does not unscale float16 gradients; use bf16"),
}


def _check_fields(config: PPOConfig) -> None:
    for name, (allowed, why) in _ALLOWED.items():
        value = getattr(config, name)
        if value not in allowed:
            raise ValueError(f"{name}={value!r} must be {' or '.join(map(str, allowed))} for PPO: {why}")
    if config.num_generations is None:
        raise ValueError("num_generations=None must be at least 1")
    limits = config.reward_clip_range
    if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
        raise ValueError(f"reward_clip_range={limits} must be two numbers, the lower one first")

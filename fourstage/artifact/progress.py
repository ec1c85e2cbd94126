"""What a person sees while a stage runs: the settings, one bar, one line per log, one screen at the end."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fourstage.artifact.checkpoints import size_at
from fourstage.artifact.divergence import Divergence
from fourstage.artifact.interrupts import save_when_asked
from fourstage.artifact.overview import overview
from fourstage.artifact.run import Run
from fourstage.artifact.saving import CleanRun, EndAsInOnePiece
from fourstage.atomic import write_atomically
from fourstage.memory import check_memory
from fourstage.stages import STAGES

if TYPE_CHECKING:
    from trl import GRPOTrainer  # takes half a second more than the other trainers

_SHOWN = {
    "loss": "loss {:.3f}",
    "eval_loss": "held-out loss {:.3f}",
    "eval_bits_per_byte": "bits per byte {:.3f}",
    "eval_mean_token_accuracy": "token accuracy {:.1%}",
    "eval_accuracy": "held-out pairs right {:.1%}",
    "reward": "reward {:.3f}",
    "objective/kl": "KL {:.2f}",
    "rewards/gold/mean": "gold {:.3f}",
    "val/explained_variance": "critic explains {:.0%}",
    "val/eos_ratio": "ended {:.0%}",
    "completions/mean_length": "length {:.0f}",
    "frac_reward_zero_std": "groups without spread {:.0%}",
    "entropy": "entropy {:.2f}",
    "eval_reward": "held-out reward {:.3f}",
    "eval_objective/kl": "held-out KL {:.2f}",
    "eval_rewards/gold/mean": "held-out gold {:.3f}",
    "grad_norm": "gradient {:.2f}",
    "learning_rate": "rate {:.1e}",
}


class StageProgress(ProgressCallback):
    """transformers' progress bar with tokens per second in it, and short lines for people instead of dictionaries."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._since, self._tokens_before = time.monotonic(), state.num_input_tokens_seen

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_postfix_str(f"{self.tokens_per_second(state):,.0f} tokens/s", refresh=False)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            parts = [text.format(float(logs[key])) for key, text in _SHOWN.items() if key in logs]
            if parts:
                bar = self.prediction_bar if self.training_bar is None else self.training_bar
                (print if bar is None else bar.write)(f"step {state.global_step}/{state.max_steps}: {', '.join(parts)}")

    def tokens_per_second(self, state: TrainerState) -> float:
        return (state.num_input_tokens_seen - self._tokens_before) / max(time.monotonic() - self._since, 1e-9)


class WriteCompletions(TrainerCallback):
    """Appends some sampled answers, with every reward, to a file at each log: what the policy says as it changes.

    A resumed run takes away first what was written after its checkpoint. `trainer` is TRL's GRPOTrainer or based on it.
    """

    def __init__(self, trainer: "GRPOTrainer", file: Path, answers: int = 4):
        self.samples, self.file, self.answers = trainer._logs, file, answers
        self.latest: dict[bool, Any] = {}  # the last answer seen, of training and of evaluation
        rows = cast(Iterable[dict], trainer.eval_dataset or [])  # one data set, not several by name
        self.held_out = {json.dumps(row["prompt"]) for row in rows}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.file.exists():
            checkpoint = self.file.parent / "checkpoints" / f"checkpoint-{state.global_step}"
            size = size_at(checkpoint, self.file.name)  # a checkpoint of an older version did not note it
            lines = self.file.read_bytes()[:size].split(b"\n")
            kept = [f"{line.decode()}\n" for line in lines if 0 <= _step_of(line) <= state.global_step != 0]
            write_atomically(self.file, "".join(kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or not {"reward", "eval_reward"} & logs.keys():
            return
        held_out = any(key.startswith("eval_") for key in logs)
        prompts, answers, rewards = (list(self.samples[key]) for key in ("prompt", "completion", "rewards"))
        # TRL keeps the last answers of training and evaluation in one list, those of earlier lines of the log too.
        seen = [i for i, answer in enumerate(answers) if answer is self.latest.get(held_out)]
        new = range(seen[-1] + 1 if seen else 0, len(prompts))
        rows = [i for i in new if (json.dumps(prompts[i]) in self.held_out) == held_out]
        self.latest[held_out] = answers[-1] if answers else None
        with self.file.open("a", encoding="utf-8") as out:
            for i in rows[-self.answers :]:
                scores = {name: self.samples["rewards"][name][i] for name in rewards}
                row = {"step": state.global_step, "held_out": held_out, "prompt": prompts[i], "completion": answers[i]}
                out.write(json.dumps(row | {"rewards": scores}, ensure_ascii=False) + "\n")


def _step_of(line: bytes) -> int:
    """The step of a line of completions.jsonl; -1 for what a kill or a full disk left of one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


class ShowOverview(TrainerCallback):
    """Prints `overview` when training begins: the number of steps is known only then."""

    def __init__(self, run: Run, trainer: Trainer):
        self.run, self.trainer = run, trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        print(f"\n{overview(self.run, self.trainer, state)}\n", flush=True)


def watch(trainer: Trainer, run: Run) -> None:
    """Gives a recipe's trainer what all of them need: `CleanRun`, and what a person sees."""
    check_memory(trainer)
    trainer.add_callback(CleanRun(run, trainer.args))
    trainer.add_callback(EndAsInOnePiece(run, trainer))
    trainer.add_callback(ShowOverview(run, trainer))
    save_when_asked(trainer)
    show_progress(trainer)
    trainer.add_callback(Divergence(run, trainer))


def show_progress(trainer: Trainer) -> None:
    """Replaces the trainer's own display by `StageProgress`."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(StageProgress)


def show_summary(run: Run, metrics: dict, samples: list[dict]) -> None:
    """One screen: where the result lies, what was measured, what the model says, what to do next."""
    if not run.is_main:
        return
    record = run.record
    seconds = metrics["train_runtime"]
    print(f"\n{record['stage']} finished: {run.folder} ({record['parameters']:,} parameters)")
    # After a resumption the tokens are those of the whole run, the seconds those since then: no rate can be told.
    rate = " since it was resumed" if run.checkpoint else f", {record['tokens'] / seconds:,.0f} tokens/s"
    print(f"  {record['tokens']:,} tokens, {seconds / 60:.1f} min{rate}")
    print("  " + ", ".join(text.format(metrics[key]) for key, text in _SHOWN.items() if key in metrics))
    for sample in samples:
        _show_sample(sample)
    print(f"  measure it: python recipes/measure.py {run.folder}")
    if following := STAGES[record["stage"]].next:
        parent = run.parent.name if run.parent else ""
        print(f"  next: {following.format(folder=run.folder, parent=parent)}")
    elif record["stage"] == "grpo" and not record["arguments"]["training"]["control"]:
        print("  its control: the same command with --control random_reward and another --output_dir")


def _show_sample(sample: dict) -> None:
    score = f"{sample['score']:+.2f} " if "score" in sample else ""
    prompt = sample["prompt"] if isinstance(sample["prompt"], str) else sample["prompt"][-1]["content"]
    print(f"  {prompt!r}\n    -> {score}{sample['completion'][:200]!r}")
    if "rejected" in sample:
        print(f"       {sample['rejected_score']:+.2f} {sample['rejected'][:200]!r}")

"""Stops a run at the first loss, gradient or weight that is not a number, and warns of other signs of divergence."""

import re
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fourstage.artifact.checkpoints import numbered, was_whole
from fourstage.artifact.signs import Settings, Sign, Watch
from fourstage.models.finite import not_finite

if TYPE_CHECKING:
    from fourstage.artifact.run import Run

_SCALER_TRIES = 25  # float16: its loss scale is halved at each overflow, from 2^16
_ROWS_SHOWN, _CHARACTERS = 3, 60
_WAIT = 10.0  # seconds that other processes leave the first to speak, as in fourstage.errors
_CRITIC = {"loss/value_avg": "the critic's loss", "val/grad_norm": "the critic's gradient norm"}  # of PPOTrainer
# What a model whose outputs are not finite brings about when answers are sampled: torch's words, and ours.
_CANNOT_SAMPLE = re.compile(r"probability tensor contains either|probabilities are not finite")


class Divergence(TrainerCallback):
    """Ends a run whose numbers are not finite, before such weights reach a checkpoint, and tells the signs.

    At every optimizer step it looks at the losses and at the norm of the gradient, which the trainer has computed, just
    before the optimizer uses them: one small message between processes and one look by the host, which takes the place
    of those of transformers' `logging_nan_inf_filter` at every micro-batch. Weights are looked at before each
    checkpoint, when training begins and when it ends.

    All processes come to the same end: one line on stderr and exit code 1.
    """

    def __init__(self, run: "Run", trainer: Trainer):
        self.run, self.trainer = run, trainer
        self.losses: list[Tensor] = []  # of the micro-batches of this step
        self.batches: list[Any] = []  # their rows, as the trainer was given them
        self.norm: Any = None
        self.overflows = 0
        self.watch: Watch | None = None
        trainer.args.logging_nan_inf_filter = False  # it would show a run of NaN as one of loss 0
        self._listen()

    def _listen(self) -> None:
        """Has the trainer's public methods pass by here; callbacks are told neither losses nor gradients."""
        trainer, accelerator = cast(Any, self.trainer), cast(Any, self.trainer.accelerator)
        train, evaluate, save = trainer.training_step, trainer.evaluate, trainer.save_model
        clip = accelerator.clip_grad_norm_

        def training_step(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            self.batches.append(inputs)
            with self._sampling():
                loss = train(model, inputs, *args, **kwargs)
            self.losses.append(loss.detach())
            return loss

        def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
            self.norm = clip(*args, **kwargs)
            return self.norm

        def save_model(*args: Any, **kwargs: Any) -> None:
            self.check_weights(f"its weights after step {trainer.state.global_step}")
            save(*args, **kwargs)

        trainer.training_step, trainer.save_model = training_step, save_model
        trainer.evaluate = _within(self._sampling, evaluate)
        accelerator.clip_grad_norm_ = clip_grad_norm_

    # Numbers

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.losses, self.batches, self.norm = [], [], None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        critic = self._critic_numbers()
        numbers = [*self.losses, *([] if self.norm is None else [_number(self.norm)]), *map(_number, critic.values())]
        device = self.trainer.args.device
        broken = torch.stack([number.reshape(()).to(device).float() for number in numbers]).isfinite().logical_not()
        every = len(self.losses)
        # Losses and the gradient's norm: the two that are judged apart. The rest is told where it is known.
        sums = torch.stack([broken[:every].any(), broken[every:].any()]).float()
        if PartialState().num_processes > 1:
            sums = cast(Tensor, self.trainer.accelerator.reduce(sums, reduction="sum"))
        loss_broken, gradient_broken = (count > 0 for count in sums.tolist())
        self.overflows = self.overflows + 1 if gradient_broken else 0
        forgiven = args.fp16 and self.overflows < _SCALER_TRIES  # the scaler skips such a step, and lowers its scale
        if loss_broken or (gradient_broken and not forgiven):
            self._stop_at(broken[:every].tolist(), critic)

    def _critic_numbers(self) -> dict[str, float]:
        logged = vars(self.trainer).get("_metrics", {}).get("train", {})
        return {name: logged[key][-1] for key, name in _CRITIC.items() if logged.get(key)}

    def _stop_at(self, broken: list[bool], critic: dict[str, float]) -> NoReturn:
        """Ends the run at the step whose numbers these are."""
        found = [(b, loss) for b, loss in zip(self.batches, self.losses, strict=True) if not loss.isfinite()]
        mine = {
            "loss": found[0][1].item() if found else None,
            "rows": [row for batch, _ in found for row in self._texts(batch)],
        }
        parts = gather_object([mine])
        losses = [part["loss"] for part in parts if part["loss"] is not None]
        rows = [row for part in parts for row in part["rows"]]
        if losses:
            what = f"the loss is {losses[0]}"
        else:
            rows = [row for part in gather_object([self._all_texts()]) for row in part]
            named = {"the gradient norm": self.norm} | critic
            name, value = next(
                ((name, float(_number(x))) for name, x in named.items() if x is not None and not _is_finite(x)),
                ("the gradient norm", "not finite"),
            )
            what = f"{name} is {value}" + (f", the loss {sum(map(float, self.losses)):.4g}" if self.losses else "")
        self._stop(self.trainer.state.global_step + 1, what, shown_rows(rows))

    def _all_texts(self) -> list[str]:
        return [row for batch in self.batches for row in self._texts(batch)]

    def _texts(self, batch: Any) -> list[str]:
        """The beginnings of a micro-batch's rows; in PPO and GRPO the prompts of the rollout."""
        if isinstance(batch, dict):
            tokenizer = cast(PreTrainedTokenizerBase, self.trainer.processing_class)
            ids = batch.get("input_ids")
            return [] if ids is None else [_text(tokenizer, row) for row in ids.tolist()]
        prompts = (row.get("prompt") for row in batch)
        return list(dict.fromkeys(p if isinstance(p, str) else p[-1]["content"] for p in prompts if p))

    # Weights

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if names := self._broken_weights():
            source = f"{self.run.checkpoint}: its weights are" if self.run.checkpoint else "the starting weights are"
            fix = "delete that checkpoint" if self.run.checkpoint else "start from another model"
            self._end(f"{source} not finite: {names[0]} holds NaN or infinity ({len(names)} tensors in all); {fix}")
        self.watch = Watch(self._settings())
        told = [sign for log in state.log_history for sign in self.watch.read(log)]
        self.run.record["warnings"] = [sign.as_record() for sign in told]  # of the part before a resumption

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.check_weights("the trained weights")

    def check_weights(self, what: str) -> None:
        """Ends the run if a weight that it trains holds NaN or infinity; all processes have to call it."""
        if names := self._broken_weights():
            what = f"{what} are not finite: {names[0]} holds NaN or infinity ({len(names)} tensors in all)"
            self._stop(self.trainer.state.global_step, what, "")

    def _broken_weights(self) -> list[str]:
        models = {"": self.trainer.model, "the critic's ": getattr(self.trainer, "value_model", None)}
        weights = {f"{of}{n}": p for of, m in models.items() if m is not None for n, p in m.named_parameters()}
        found = gather_object(not_finite(weights)) if PartialState().num_processes > 1 else not_finite(weights)
        return list(dict.fromkeys(found))

    @contextmanager
    def _sampling(self) -> Generator[None]:
        """Around what may sample answers: a model whose outputs are not finite cannot."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if not _CANNOT_SAMPLE.search(str(error)):
                raise
            if not self.run.is_main:  # it may be alone with this: no message to the others is waited for
                time.sleep(_WAIT)
            self._tell(self._line(self.trainer.state.global_step, "the model's probabilities are not finite", ""))
            raise SystemExit(1) from None

    # Signs

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if self.watch is None or not logs or not state.log_history:
            return
        signs = self.watch.read(state.log_history[-1])
        if self.run.is_main and signs:
            self.run.record.setdefault("warnings", []).extend(sign.as_record() for sign in signs)
            self.run.write()
            for sign in signs:
                tqdm.write(f"warning: step {sign.step}: {sign.message}", file=sys.stderr)
        if getattr(args, "stop_on_divergence", False):
            self._stop_on(next((sign for sign in signs if sign.grave), None))

    def _stop_on(self, sign: Sign | None) -> None:
        if PartialState().num_processes > 1:
            sign = broadcast_object_list([sign])[0]  # logs of rewards may differ in the last digit
        if sign is not None:
            self._stop(sign.step, f"{sign.message.rsplit('; ', 1)[0]} (stop_on_divergence)", "")

    def _settings(self) -> Settings:
        args, config = cast(Any, self.trainer.args), cast(Any, self.trainer.model).config.get_text_config()
        limit = getattr(args, "max_completion_length", None)
        scores = type(self.trainer).__name__ == "RewardTrainer"
        return Settings(args.learning_rate, limit, 0 if scores else config.vocab_size)

    # The end

    def _stop(self, step: int, what: str, rows: str) -> NoReturn:
        self._end(self._line(step, what, rows), {"kind": "stopped", "step": step, "grave": True, "message": what})

    def _end(self, line: str, note: dict | None = None) -> NoReturn:
        """All processes come here together."""
        if self.run.is_main:
            self._tell(line, note)
        PartialState().wait_for_everyone()  # at the end of any, the launcher may end the first, which is still writing
        raise SystemExit(1)

    def _tell(self, line: str, note: dict | None = None) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback):
                for bar in filter(None, (callback.training_bar, callback.prediction_bar)):
                    bar.clear()  # closing alone leaves a young one in front of the line
                    bar.close()
        if note and self.run.is_main:
            self.run.record.setdefault("warnings", []).append(note)
            self.run.write()
        sys.stdout.flush()
        print(f"error: {line}", file=sys.stderr, flush=True)

    def _line(self, step: int, what: str, rows: str) -> str:
        args, folder = self.trainer.args, self.run.folder
        last = last_checkpoint(folder, step)
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        clip = "" if args.max_grad_norm else ", set max_grad_norm (1.0)"
        half = ", use bf16 in place of fp16" if args.fp16 else ""
        look = "; if it stops at the same step then, look at these rows" if rows else ""
        return (
            f"{self.run.record['stage']} stopped at step {step}: {what}{rows}. Nothing of this step was saved; {kept}. "
            f"Lower learning_rate (now {args.learning_rate:g}){clip}{half} and start again with another --output_dir, "
            f"or remove {folder} first{look}"
        )


def _within(context: Callable, function: Callable) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        with context():
            return function(*args, **kwargs)

    return run


def _number(value: Any) -> Tensor:
    value = value.full_tensor() if isinstance(value, DTensor) else value
    return value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))


def _is_finite(value: Any) -> bool:
    return bool(_number(value).isfinite().all())


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The beginning of a row, without what only fills it up on the left."""
    begin = next((i for i, token in enumerate(ids) if token != tokenizer.pad_token_id), 0)
    return cast(str, tokenizer.decode(ids[begin : begin + _CHARACTERS]))


def shown_rows(rows: list[str]) -> str:
    """The first rows in a few words each, control characters escaped; empty without rows.

    Example: ["one", "two"] -> "; its rows begin 'one', 'two'".
    """
    if not rows:
        return ""
    shown = ", ".join(repr(row[:_CHARACTERS]) for row in rows[:_ROWS_SHOWN])
    more = f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
    return f"; its rows begin {shown}{more}"


def last_checkpoint(folder: Path, step: int) -> Path | None:
    """The newest finished checkpoint of a run at or before a step."""
    found = [path for path in numbered(folder) if was_whole(path) and int(path.name.split("-")[1]) <= step]
    return found[-1] if found else None


def check_result(folder: Path, model: nn.Module, state_dict: dict[str, Tensor] | None) -> None:
    """Refuses to leave weights that are not finite as a finished stage; all processes have to call it.

    Args:
        folder: of the run. state_dict: the weights to save, whole in the first process; default: those of `model`.
    Raises:
        SystemExit: with code 1, after one line on stderr.
    """
    process, named = PartialState(), dict(model.named_parameters()) if state_dict is None else state_dict
    names = [not_finite({name: w for name, w in named.items() if isinstance(w, Tensor)})]
    if process.num_processes > 1:
        names = broadcast_object_list(names)
    if not names[0]:
        return
    if process.is_main_process:
        print(
            f"error: {folder} is not finished: of the model that it would leave {names[0][0]} holds NaN or infinity "
            f"({len(names[0])} tensors in all); lower learning_rate and start again with another --output_dir, or "
            f"remove {folder} first",
            file=sys.stderr,
            flush=True,
        )
    process.wait_for_everyone()
    raise SystemExit(1)

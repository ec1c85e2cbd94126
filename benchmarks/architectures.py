"""Which architectures of transformers do the stages take? Measures every causal type and renders docs/architectures.md.

    python -m benchmarks.architectures              # all types, writes docs/architectures.md
    python -m benchmarks.architectures llama mamba  # measures these again, keeps the other rows

Each type is built at about a million parameters on the CPU and driven through what the stages need. Types are measured
in a worker process with a time limit, so that one crash or endless loop costs one row. Nothing is downloaded.
"""

import copy
import dataclasses
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

TABLE = Path(__file__).resolve().parent.parent / "docs" / "architectures.md"
SIZE, VOCAB, POSITIONS, SEQUENCE, NEW_TOKENS = 1_000_000, 512, 128, 32, 4
LARGEST = 60_000_000  # parameters; a type that cannot get below this is not built
SECONDS_PER_TYPE = 180
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADER = f"""# Architectures

Every causal language model type of transformers {{version}}, built at about {SIZE:,} parameters (vocabulary {VOCAB},
{POSITIONS} positions) with `fourstage.models.sizing.sized_config`. This file is written by
`python -m benchmarks.architectures` and checked by `tests/models/test_architectures.py`; do not edit it.

* **pretrain + sft**: builds, is causal (a later token leaves earlier logits alone), takes one training step with a
  finite loss, generates {NEW_TOKENS} tokens, and gives the same logits after saving and loading.
* **reward**: `AutoModelForSequenceClassification` with one label gives one score per sequence.
* **fused log-probs**: TRL's fused head gives the log-probabilities of the plain logits to 1e-4 (in eval mode). Where
  this says no, train with the plain logits.

{{summary}}

| type | parameters | pretrain + sft | reward | fused log-probs | note |
| --- | ---: | --- | --- | --- | --- |
"""


@dataclasses.dataclass
class Row:
    """What was measured of one type. `note` is the first reason of each kind of failure."""

    type: str
    parameters: int = 0
    trains: bool = False
    reward: bool = False
    fused: bool = False
    note: str = ""


def measure(model_type: str) -> Row:
    """Drive one type through every check; never raises."""
    import torch

    from fourstage.models.sizing import count_parameters, sized_config

    row = Row(model_type)
    torch.manual_seed(0)
    ids = torch.randint(3, VOCAB, (2, SEQUENCE))
    try:
        shape = {"vocab_size": VOCAB, "max_position_embeddings": POSITIONS, "special_token_ids": SPECIAL}
        config = sized_config(model_type, SIZE, **shape)
        row.parameters = count_parameters(config)
        if row.parameters > LARGEST:
            raise ValueError(f"{row.parameters} parameters are too many to build here")
    except Exception as error:
        row.note = _reason("size", error)
        return row
    notes = []
    for column, check in (("trains", _check_training), ("reward", _check_reward), ("fused", _check_fused)):
        try:
            check(copy.deepcopy(config), ids)
            setattr(row, column, True)
        except Exception as error:
            notes.append(_reason(column, error))
    row.note = "; ".join(notes)
    return row


def _check_training(config, ids) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config).eval()
    _check_causal(model, ids)
    _check_step(model.train(), ids)
    model.eval()
    tokens = model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    _require(tokens.shape == (2, SEQUENCE + NEW_TOKENS), f"generated shape {tuple(tokens.shape)}")
    _check_reload(model, ids)


def _check_causal(model, ids) -> None:
    import torch

    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] - 3 + 1) % (VOCAB - 3) + 3
    with torch.no_grad():
        first, second = model(input_ids=ids).logits, model(input_ids=changed).logits
    _require(first.shape == (*ids.shape, VOCAB), f"logits have shape {tuple(first.shape)}")
    _require(
        torch.allclose(first[:, :-1], second[:, :-1], atol=1e-4), "not causal: a later token changes earlier logits"
    )


def _check_step(model, ids) -> None:
    import torch

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss = model(input_ids=ids, labels=ids).loss
    _require(bool(torch.isfinite(loss)), f"loss {loss.item()}")
    loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    _require(any(not torch.equal(before[n], p) for n, p in model.named_parameters()), "no parameter changed")
    _require(all(bool(torch.isfinite(p).all()) for p in model.parameters()), "a parameter is no longer finite")


def _check_reload(model, ids) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        expected = model(input_ids=ids).logits
        model.save_pretrained(folder)
        _require(any(Path(folder).glob("*.safetensors")), "saved no safetensors file")
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        difference = (loaded(input_ids=ids).logits - expected).abs().max().item()
    _require(difference <= 1e-5, f"logits differ by {difference:.2g} after saving and loading")


def _check_reward(config, ids) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = ids.clone()
    ids[:, -1] = SPECIAL["eos_token_id"]  # where the BART kind reads its score
    with torch.no_grad():
        scores = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    _require(scores.shape == (2, 1), f"scores have shape {tuple(scores.shape)}")
    _require(bool(torch.isfinite(scores).all()), "scores are not finite")


def _check_fused(config, ids) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    model = AutoModelForCausalLM.from_config(config).eval()
    # At initialisation all tokens are about equally likely and a wrong logit scale or cap would hide; spread them.
    model.get_output_embeddings().weight.data.mul_(20)
    labels = ids.clone()
    labels[:, : SEQUENCE // 4] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        plain = torch.log_softmax(model(**inputs).logits[:, :-1].float(), -1)
        add_fused_lm_head(model)
        fused = model(**inputs, labels=labels, fused_lm_head=True).log_probs
    targets = labels[:, 1:]
    expected = plain.gather(-1, targets.clamp(min=0)[..., None])[..., 0].masked_fill(targets == -100, 0.0)
    difference = (fused - expected).abs().max().item()
    _require(difference <= 1e-4, f"log-probabilities differ by {difference:.2g}")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)


def _reason(column: str, error: Exception) -> str:
    """One line, without folders of the machine and without the table's column mark."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removeprefix("ValueError: ")
    if "Unrecognized configuration class" in text:
        return f"{column}: transformers has no such class"
    text = re.sub(r"\S*/(\S+)", r"\1", text).replace("|", "/")
    return f"{column}: {text[:110]}{'...' if len(text) > 110 else ''}"


def work() -> None:
    """Worker: type names on standard input, one JSON row per line on standard output."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    answers, sys.stdout = sys.stdout, sys.stderr  # what a model prints must not reach the answers
    for line in sys.stdin:
        print(json.dumps(dataclasses.asdict(measure(line.strip()))), file=answers, flush=True)


class _Worker:
    """A worker process and a thread that turns its answers into a queue that can be waited on for a limited time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.architectures", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=TABLE.parent.parent,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def ask(self, model_type: str, seconds: float) -> Row | str:
        """The row, or why there is none; after that the worker is gone."""
        try:
            self.process.stdin.write(model_type + "\n")
            self.process.stdin.flush()
            answer = self.answers.get(timeout=seconds)
        except queue.Empty:
            self.close()
            return f"no result in {SECONDS_PER_TYPE} s"
        except BrokenPipeError:
            answer = ""
        return Row(**json.loads(answer)) if answer else f"the process ended with code {self.process.wait()}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def measure_all(types: list[str]) -> list[Row]:
    """One row per type, with progress on standard error."""
    rows, worker = [], None
    for index, model_type in enumerate(types):
        starting = worker is None
        worker = worker or _Worker()
        answer = worker.ask(model_type, SECONDS_PER_TYPE * (2 if starting else 1))  # the imports take their time
        if isinstance(answer, str):
            worker, answer = None, Row(model_type, note=answer)
        rows.append(answer)
        print(f"[{index + 1}/{len(types)}] {_render_row(answer)}", file=sys.stderr, flush=True)
    if worker:
        worker.close()
    return rows


def _render_row(row: Row) -> str:
    marks = ["yes" if mark else "no" for mark in (row.trains, row.reward, row.fused)]
    return f"| {row.type} | {row.parameters or '-'} | {' | '.join(marks)} | {row.note} |"


def render(rows: list[Row]) -> str:
    """The whole of docs/architectures.md."""
    import transformers

    trains, reward, fused = (sum(getattr(row, column) for row in rows) for column in ("trains", "reward", "fused"))
    summary = f"Of {len(rows)} types, {trains} pass pretrain + sft, {reward} reward and {fused} fused log-probs."
    lines = [_render_row(row) for row in rows]
    return HEADER.format(version=transformers.__version__, summary=summary) + "\n".join(lines) + "\n"


def parse(table: str) -> dict[str, Row]:
    """The rows of a rendered table by type."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {
        name: Row(name, 0 if size == "-" else int(size), *(mark == "yes" for mark in marks), note)
        for name, size, *marks, note in cells[2:]
    }


def main(arguments: list[str]) -> None:
    from fourstage.models.sizing import causal_lm_types

    if arguments == ["--worker"]:
        work()
        return
    kept = parse(TABLE.read_text(encoding="utf-8")) if arguments else {}
    measured = {row.type: row for row in measure_all(arguments or causal_lm_types())}
    rows = kept | measured
    TABLE.write_text(render([rows[name] for name in sorted(rows)]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

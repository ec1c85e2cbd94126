"""What SFT trains on, for chat templates as published and five shapes of rows: the table in docs/elsewhere.md.

    python benchmarks/chat_templates.py

The labels are TRL's own, of the SFTTrainer that recipes/sft.py builds. The templates are those that TRL ships; the
tokenizer is a small one with the special tokens that each names, so that no model is needed.
"""

import json
import re
import tempfile
from importlib.resources import files

from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import SFTTrainer

from fourstage.arguments import InstructConfig
from fourstage.data.trained_text import untrained_parts
from fourstage.models.encoding import template_refusal, turn_end
from fourstage.models.tokenizer import mark_generation, train_tokenizer
from fourstage.models.turns import adapt_template

TEMPLATES = (
    *("fourstage", "qwen2_5", "qwen3", "qwen3_5_think", "deepseek_r1_distill", "gptoss", "glm4moe", "llama3"),
    *("llama3_1", "gemma", "gemma3", "phi3", "lfm2_v2"),
)
_CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "City"}}, "required": ["city"]}
_TOOLS = json.dumps([{"type": "function", "function": {"name": "sky", "description": "Sky", "parameters": _CITY}}])
_CALL = json.dumps([{"type": "function", "function": {"name": "sky", "arguments": {"city": "Rome"}}}])


def _user(text: str) -> dict:
    return {"role": "user", "content": text}


def _bot(text: str, **more: str) -> dict:
    return {"role": "assistant", "content": text, **more}


SHAPES: dict[str, tuple[list[dict], list[dict], str | None]] = {
    "plain": ([_user("Hi")], [_bot("Hello.")], None),
    "system": ([{"role": "system", "content": "Be kind."}, _user("Hi")], [_bot("Hello.")], None),
    "thoughts": ([_user("2+2?")], [_bot("4", reasoning_content="2 and 2")], None),
    "tools": ([_user("Sky?")], [_bot("", tool_calls=_CALL), {"role": "tool", "content": "sun"}, _bot("Sun.")], _TOOLS),
    "turns": (
        [_user("2+2?")],
        [_bot("<think>\n2 and 2\n</think>\n\n4"), _user("Sure?"), _bot("<think>\nyes\n</think>\n\nYes.")],
        None,
    ),
}


def tokenizer_with(name: str) -> PreTrainedTokenizerBase:
    """A small tokenizer with a published template, and a token for every marker that the template names."""
    tokenizer = train_tokenizer(["hello sky sun yes no 2 and 2 is 4"] * 20, 512, 2048)
    if name != "fourstage":
        tokenizer.chat_template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
        pattern = r"<[|\uff5c][^<>' \n]{1,30}?[|\uff5c]>|<(?:start_of|end_of)_\w+>|</?s>"
        found = sorted(set(re.findall(pattern, tokenizer.chat_template)) - tokenizer.get_vocab().keys())
        tokenizer.add_special_tokens({"extra_special_tokens": found})
    adapt_template(tokenizer)
    return tokenizer


def lines() -> list[str]:
    """The table's lines, in Markdown."""
    table = ["| template | stops at | row | trained on | not |", "|---|---|---|---|---|"]
    for name in TEMPLATES:
        tokenizer = tokenizer_with(name)
        end = turn_end(tokenizer)
        stop = "no token" if end is None else _code(str(tokenizer.convert_ids_to_tokens(end)))
        mark_generation(tokenizer)
        refused = {shape: template_refusal(tokenizer, [*p, *c], tools) for shape, (p, c, tools) in SHAPES.items()}
        taken = [shape for shape, reason in refused.items() if reason is None]
        trained = dict(zip(taken, _trained(tokenizer, [SHAPES[shape] for shape in taken]), strict=True))
        for shape, reason in refused.items():
            text, missing = (f"refused: {reason}", "") if reason else (trained[shape][0], ", ".join(trained[shape][1]))
            first = (f"`{name}`", stop) if shape == "plain" else ("", "")
            table.append(f"| {first[0]} | {first[1]} | {shape} | {text} | {missing} |".replace("  ", " "))
    return table


def _trained(tokenizer: PreTrainedTokenizerBase, shapes: list) -> list[tuple[str, list[str]]]:
    """(the trained text of each row, what of the assistant's words is not in it)."""
    rows = [{"prompt": prompt, "completion": completion, "tools": tools} for prompt, completion, tools in shapes]
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with tempfile.TemporaryDirectory() as folder:
        args = InstructConfig(output_dir=folder, max_length=2048, report_to=[], disable_tqdm=True)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:1]),
            processing_class=tokenizer,
        )
    return [(_in_code(tokenizer, row["labels"]), untrained_parts(tokenizer, row)) for row in trainer.train_dataset]


def _in_code(tokenizer: PreTrainedTokenizerBase, labels: list[int]) -> str:
    """Each stretch of labels as code, in which line ends are \u21b5."""
    runs: list[list[int]] = [[]]
    for label in labels:
        if label == -100:
            runs += [[]] if runs[-1] else []
        else:
            runs[-1].append(label)
    return " \u2026 ".join(_code(str(tokenizer.decode(run))) for run in runs if run)


def _code(text: str) -> str:
    return "`" + text.replace("\n", "\u21b5").replace("|", "\\|") + "`"


if __name__ == "__main__":
    logging.set_verbosity_error()
    print("\n".join(lines()))

"""A stage folder -> a GGUF file, by llama.cpp's own converter.

    python recipes/to_gguf.py LLAMA_CPP runs/sft --outfile runs/sft.gguf --outtype q8_0

LLAMA_CPP is a checkout of llama.cpp; all further arguments are its convert_hf_to_gguf.py's. What is added: that program
knows a tokenizer by a hash over its vocabulary and refuses one that it has never seen, such as every one trained here.
How fourstage's tokenizers split a text is known to llama.cpp, though: single digits, then GPT-2's pattern, which it
calls "smollm". Other tokenizers are left to it.
"""

import json
import runpy
import sys
from pathlib import Path

from fourstage.errors import reported_errors

SPLIT_OF_SMOLLM = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}]


def splits_like_smollm(tokenizer_file: Path) -> bool:
    """Whether a tokenizer.json splits single digits, then by GPT-2's pattern, and changes nothing before."""
    if not tokenizer_file.is_file():
        return False
    content = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    steps = (content.get("pre_tokenizer") or {}).get("pretokenizers") or []
    if len(steps) != 2 or content.get("normalizer"):
        return False
    wanted = zip(SPLIT_OF_SMOLLM, steps, strict=True)
    return all(want.items() <= step.items() for want, step in wanted) and not steps[1].get("add_prefix_space")


def main(llama_cpp: Path, model: Path, options: list[str]) -> None:
    converter = llama_cpp / "convert_hf_to_gguf.py"
    if not (llama_cpp / "conversion" / "base.py").is_file():
        raise ValueError(f"{llama_cpp} has no conversion/base.py; give the folder of a llama.cpp of 2026 or later")
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]  # its own gguf, not an installed one
    if splits_like_smollm(model / "tokenizer.json"):
        from conversion import base

        base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
    sys.argv = [str(converter), str(model), *options]
    runpy.run_path(str(converter), run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) < 3 or "--help" in sys.argv:
        print(__doc__ + "\nusage: python recipes/to_gguf.py LLAMA_CPP DIR [--outfile FILE] [--outtype TYPE] ...")
    else:
        with reported_errors():
            main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])

"""What a recipe says by itself: those checks of the doctor that take no time."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from fourstage.arguments import DataArguments, ModelArguments
from fourstage.imports import without_bitsandbytes


def tell_faults(
    stage: str,
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    training_args: Any,
    model_args: ModelArguments,
) -> None:
    """Prints a line for whatever is wrong with tokenizer and chat template, and for libraries that were not tested.

    Nothing is refused: `fourstage doctor` says more, with the rows.
    """
    with without_bitsandbytes():
        from fourstage.doctor import launching, texts
        from fourstage.doctor.findings import in_words
        from fourstage.doctor.subject import Subject, attempt
        from fourstage.plan.recipe import Settings
        from fourstage.printing import visible

    settings = Settings(stage, data_args, training_args, model_args, set())
    name = model_args.model_name_or_path
    subject = Subject(str(name), "recipe", stage, settings, name, own_tokenizer=tokenizer, tokenizer=tokenizer)
    for check in (texts.pad_against_end, texts.end_of_turn, texts.double_bos, texts.same_text, launching.versions):
        found: list = []
        found += attempt(found, check.__name__.replace("_", " "), lambda check=check: check(subject)) or []
        for finding in found:
            if finding.level in ("warning", "FAIL"):
                print(visible(f"doctor: {finding.level.lower()}: {in_words(finding)}"))

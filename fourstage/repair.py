"""Mends what a tokenizer from elsewhere may lack for training: its own pad token, marks around what is trained on."""

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import has_generation_markers

# The model's own template, unchanged, is a macro, rendered up to each of the assistant's turns: what a turn adds is
# put between the marks. The pieces are cut from the whole text, so that their sum is that text in any case.
_MARKED = """\
{%- macro own_template(messages, add_generation_prompt) +%}OWN{%+ endmacro -%}
{%- set whole = own_template(messages, add_generation_prompt) -%}
{%- set done = namespace(at=0) -%}
{%- for index in range(messages | length) if messages[index]['role'] == 'assistant' -%}
    {%- set asked = own_template(messages[:index], true) -%}
    {%- set answered = own_template(messages[:index + 1], false) -%}
    {%- if not answered.startswith(asked) -%}
        {%- set asked = own_template(messages[:index], false) -%}
    {%- endif -%}
    {%- set turn = answered[asked | length:].rstrip() -%}
    {#- Some templates leave the thoughts of former turns out: there the turn is the answer and its end alone. -#}
    {%- set answer = turn[turn.rfind(messages[index]['content'] | trim):] -%}
    {%- set turn = turn if whole.startswith(asked + turn) else answer -%}
    {%- if whole.startswith(asked + turn) and done.at <= asked | length -%}
        {{- whole[done.at:asked | length] -}}
        {%- generation -%}
            {{- turn -}}
        {%- endgeneration -%}
        {%- set done.at = (asked + turn) | length -%}
    {%- endif -%}
{%- endfor -%}
{{- whole[done.at:] -}}
"""
_PROBES = [
    [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2,
    [{"role": "system", "content": "s"}, {"role": "user", "content": " a\n"}, {"role": "assistant", "content": " b\n"}],
]


def repair_pad_token(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Gives a tokenizer whose pad token is missing, or is its end token, one of its own; says what was done.

    Reward models look for the last token that is not pad, so an end token must be another. Taken is, first match: a
    special token called pad, a reserved one, the unknown token, else a new `<|pad|>`. No text is tokenised otherwise.
    Example: SmolLM2 has pad = eos = `<|im_end|>`, and gets pad = `<|endoftext|>`, its unknown token.
    """
    before = tokenizer.pad_token
    if before is not None and before != tokenizer.eos_token:
        return []
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    added = tokenizer.added_tokens_decoder
    spare = [added[i].content for i in sorted(added) if added[i].special and added[i].content not in taken]
    named = [token for word in ("pad", "reserved") for token in spare if word in token.lower()]
    unknown = [tokenizer.unk_token] if tokenizer.unk_token and tokenizer.unk_token not in taken else []
    tokenizer.add_special_tokens({"pad_token": (named + unknown + ["<|pad|>"])[0]})
    return [f"pad_token: {before} -> {tokenizer.pad_token} (it has to differ from the end token)"]


def mark_generation(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Puts `{% generation %}` marks into a chat template that has none, which renders the same text; says so.

    For the trainer only: the template that is saved stays the model's own.
    Raises:
        ValueError: if the template renders some turn so that what it adds cannot be told.
    """
    own = tokenizer.get_chat_template()
    if has_generation_markers(own):
        return []
    marked = _MARKED.replace("OWN", own.removesuffix("\n"))
    for turns in _PROBES:
        _check_same(tokenizer, turns, own, marked)
    tokenizer.chat_template = marked
    return ["chat_template: marks around the assistant's turns while training, the same text; saved as it was"]


def _check_same(tokenizer: PreTrainedTokenizerBase, turns: list[dict], own: str, marked: str) -> None:
    try:
        plain = tokenizer.apply_chat_template(turns, chat_template=own, tokenize=False)
    except Exception:  # a template may refuse a system turn, in an exception of its engine's
        return
    rendered = tokenizer.apply_chat_template(turns, chat_template=marked, tokenize=False)
    masked = tokenizer.apply_chat_template(
        turns, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    if rendered != plain or not any(masked["assistant_masks"]):
        raise ValueError(
            "the chat template of this tokenizer cannot be marked for training on the assistant's turns: put "
            "{% generation %} marks into it yourself, or give --assistant_only_loss false"
        )

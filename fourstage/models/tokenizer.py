"""Tokenizers: a byte-level BPE with a chat template is trained; those of other models are repaired for training."""

import math
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from fourstage.models.opening import open_tokenizer
from fourstage.models.turns import written

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
SPECIAL_TOKENS = [PAD, BOS, EOS, "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")

# Sizes are multiples of 128, so that the embedding has a shape that suits matrix hardware; 256 bytes and the special
# tokens need at least 384 entries.
MULTIPLE = 128
MINIMUM_SIZE = math.ceil((256 + len(SPECIAL_TOKENS)) / MULTIPLE) * MULTIPLE

# Bytes: more than words have in any language that is written without spaces, where nothing else parts them.
_LONGEST_WORD = 2_000


def default_vocab_size(num_parameters: int) -> int:
    """The power of two nearest to sqrt(parameters), so that embeddings stay a modest share of a small model.

    Example: 1M -> 1024, 10M -> 4096, 125M -> 8192, 1B -> 32768.
    """
    size = 2 ** round(math.log2(math.sqrt(num_parameters)))
    return min(max(size, 512), 131_072)


def check_vocab_size(vocab_size: int) -> None:
    """Raises ValueError unless `vocab_size` is a multiple of 128 with room for every byte and special token."""
    if vocab_size < MINIMUM_SIZE or vocab_size % MULTIPLE:
        raise ValueError(
            f"vocab_size={vocab_size} must be a multiple of {MULTIPLE} and at least {MINIMUM_SIZE} (256 bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens); the nearest is "
            f"--vocab_size {max(MINIMUM_SIZE, round(vocab_size / MULTIPLE) * MULTIPLE)}"
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Trains byte-level BPE on `texts` (read once, as a stream): any Unicode text survives a round trip.

    Each digit is a token, so that every number has one spelling. A corpus too small for `vocab_size` entries gives
    fewer, filled up with reserved tokens to a multiple of 128: the embedding has as many rows as the vocabulary. Words
    of more than 2,000 bytes, such as the letters of a genome, are learnt from in pieces of that length.

    Args:
        texts: documents. vocab_size: entries, including special and reserved ones. max_length: context in tokens.
    Raises:
        ValueError: if `vocab_size` is not a multiple of 128, or too small for the bytes.
    """
    check_vocab_size(vocab_size)
    bpe = Tokenizer(models.BPE())
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    # While it is trained, long words are cut: time grows with the square of a word's length.
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*words, pre_tokenizers.FixedLength(_LONGEST_WORD)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(words)
    bpe.add_special_tokens([f"<|reserved_{i}|>" for i in range(-bpe.get_vocab_size() % MULTIPLE)])
    # Plain text begins a document. TRL adds the end of a document to every text that it trains on.
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


# Contractions, digits, spaces, line ends and a marker of the template: here the splits of tokenizers differ.
_PROBE = "It's the dog's 1,234th bone.  A caf\u00e9!\n\n  x = 'y';\tI'LL <|user|>go..."


def check_reload(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raises ValueError if AutoTokenizer would load another tokenizer from the folder of a model with this `config`.

    For a few model types (qwen2, qwen3_5) AutoTokenizer of transformers 5.23 builds the type's own class from the
    saved vocabulary, whatever class was saved: it splits text differently, and has one token more than the embedding
    has rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        loaded = open_tokenizer(folder, config=config)
    if len(loaded) != len(tokenizer) or loaded(_PROBE).input_ids != tokenizer(_PROBE).input_ids:
        raise ValueError(
            f"model_type={config.model_type!r}: transformers loads a {type(loaded).__name__} of {len(loaded)} entries "
            f"from the folder in place of this run's tokenizer, which has {len(tokenizer)}; choose another model_type, "
            "such as qwen3, or name a tokenizer of that class with --tokenizer_name"
        )


def first_characters(rows: Iterable[dict], limit: int = 100_000_000) -> Iterator[str]:
    """The `text` of rows, cut off after `limit` characters in all, which bounds the memory of `train_tokenizer`."""
    for row in rows:
        text = row["text"][:limit]
        yield text
        limit -= len(text)
        if limit <= 0:
            return


# The model's own template, unchanged, is a macro, rendered up to each of the assistant's turns: what a turn adds is
# put between the marks. The pieces are cut from the whole text, so that their sum is that text in any case.
_MARKED = """\
{%- macro own_template(messages, add_generation_prompt) +%}OWN{%+ endmacro -%}
{%- set whole = own_template(messages, add_generation_prompt) -%}
{%- set done = namespace(at=0) -%}
{%- for index in range(messages | length) if messages[index]['role'] == 'assistant' -%}
    {%- set asked = own_template(messages[:index], true) -%}
    {%- set answered = own_template(messages[:index + 1], false) -%}
    {%- if not (answered.startswith(asked) and whole.startswith(asked)) -%}
        {#- The generation prompt may open the thoughts, which not every turn has: what all have in common. -#}
        {%- set common = namespace(at=own_template(messages[:index], false) | length) -%}
        {%- for at in range(common.at, asked | length) if answered.startswith(asked[:at]) -%}
            {%- set common.at = at if whole.startswith(asked[:at]) else common.at -%}
        {%- endfor -%}
        {%- set asked = asked[:common.at] -%}
    {%- endif -%}
    {%- set turn = answered[asked | length:].rstrip() -%}
    {%- set kept = namespace(turn=turn if whole.startswith(asked + turn) else '') -%}
    {#- Templates may write former turns otherwise, without thoughts or with another end: the answer, and its end. -#}
    {%- set answer = (messages[index]['content'] | default('', true) | string).split('</think>')[-1] | trim -%}
    {%- set answer = answer or turn.split('</think>')[-1] | trim -%}
    {%- set rest = whole[asked | length:] -%}
    {%- if not kept.turn and answer and 0 <= rest.find(answer) <= turn | length -%}
        {%- set body = rest[:rest.find(answer)] + answer -%}
        {%- set after, end = rest[body | length:], turn[turn.rfind(answer) + answer | length:] -%}
        {%- set end = end if after.startswith(end) or after[:1] != '<' else after.split('>')[0] + '>' -%}
        {%- set kept.turn = body + (end if after.startswith(end) else '') -%}
    {%- endif -%}
    {%- if kept.turn and done.at <= asked | length -%}
        {{- whole[done.at:asked | length] -}}
        {%- generation -%}
            {{- kept.turn -}}
        {%- endgeneration -%}
        {%- set done.at = (asked + kept.turn) | length -%}
    {%- endif -%}
{%- endfor -%}
{{- whole[done.at:] -}}
"""
_THOUGHTFUL = {"role": "assistant", "content": "<think>\nb b\n</think>\n\nc d"}
_PROBES = [
    [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2,
    [{"role": "system", "content": "s"}, {"role": "user", "content": " a\n"}, {"role": "assistant", "content": " b\n"}],
    [{"role": "user", "content": "a b"}, _THOUGHTFUL] * 2,
]


def repair_pad_token(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Gives the tokenizer a pad token that differs from its end token, and returns what was changed, in words.

    Reward models look for the last token that is not padding, so the end token cannot serve. The first of these that
    exists is taken: a special token called pad, a reserved one, the unknown token; else a new `<|pad|>` is added. Texts
    are tokenised as before.
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
    """Puts `{% generation %}` marks into a chat template that has none, and returns what was changed, in words.

    The marked template renders the same text. Where the model's own leaves out what the assistant thought, as that of
    DeepSeek-R1 does, the text is that of TRL's training template, if it has one. Either is for the trainer only: the
    template that is saved stays the model's.
    Raises:
        ValueError: if the text that a turn adds cannot be told from the rest of the rendered conversation.
    """
    own = tokenizer.get_chat_template()
    if has_generation_markers(own):
        return []
    thoughtful = _with_thoughts(tokenizer, own)
    marked = _MARKED.replace("OWN", (thoughtful or own).removesuffix("\n"))
    for turns in _PROBES:
        _check_same(tokenizer, turns, thoughtful or own, marked)
    tokenizer.chat_template = marked
    text = "the same text" if thoughtful is None else "and the thoughts, which it leaves out"
    return [f"chat_template: marks around the assistant's turns while training, {text}; saved as it was"]


def _with_thoughts(tokenizer: PreTrainedTokenizerBase, own: str) -> str | None:
    """For a template that leaves out even the thoughts of the last turn: TRL's for training, without its marks."""
    turns = [{"role": "user", "content": "a"}, _THOUGHTFUL]
    if "b b" in (written(tokenizer, own, turns) or "b b"):
        return None
    try:
        training = get_training_chat_template(tokenizer) or own
    except ValueError:  # it knows some forty templates, each by its exact text
        return None
    bare = re.sub(r"(\{%-?\s*)endgeneration\b", r"\1endif", re.sub(r"(\{%-?\s*)generation\b", r"\1if true", training))
    return bare if "b b" in (written(tokenizer, bare, turns) or "") else None


def _check_same(tokenizer: PreTrainedTokenizerBase, turns: list[dict], own: str, marked: str) -> None:
    try:
        plain = tokenizer.apply_chat_template(turns, chat_template=own, tokenize=False)
    except Exception:  # a template may refuse a system turn, with any exception of its engine
        return
    rendered = tokenizer.apply_chat_template(turns, chat_template=marked, tokenize=False)
    masked = tokenizer.apply_chat_template(
        turns, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    if rendered != plain or not any(cast(BatchEncoding, masked)["assistant_masks"]):
        raise ValueError(
            "the chat template of this tokenizer cannot be marked for training on the assistant's turns: put "
            "{% generation %} marks into it yourself, or give --assistant_only_loss false"
        )

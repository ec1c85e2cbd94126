"""Checks of tokenizer and chat template: where an answer ends, what begins a text, and what generation will read."""

from typing import cast

from fourstage.doctor.findings import Finding, fail, ok, some, unknown, warning
from fourstage.doctor.subject import Subject
from fourstage.models.encoding import conversation_ids, turn_end
from fourstage.models.facts import stop_ids
from fourstage.models.markers import Markers
from fourstage.models.opening import open_tokenizer
from fourstage.models.turns import template_settings
from fourstage.parent import is_gguf
from fourstage.ppo.critic import same_vocabulary

_ASKED = [{"role": "user", "content": "Qz1"}]
_ANSWERED = [*_ASKED, {"role": "assistant", "content": "Qz2"}]


def pad_against_end(subject: Subject) -> list[Finding]:
    """The token that pads must not be the one that ends: collators mask it, and reward models look for the last token
    that is no pad."""
    tokenizer, what = subject.own_tokenizer or subject.tokenizer, "pad and end"
    if tokenizer is None:
        return []
    pad, end = tokenizer.pad_token, tokenizer.eos_token
    if end is None:
        return [fail(what, "the tokenizer has no end token, so nothing could end", "choose another tokenizer")]
    if (chosen := getattr(subject.training, "pad_token", None)) and chosen == end:
        reads = (
            "the score would be read before the end" if subject.stage == "reward" else "a mask of pads hides the end"
        )
        return [fail(what, f"pad_token={chosen} is the end token: {reads}", "leave pad_token out", "pad_token")]
    scores = subject.kind != "recipe" and subject.stage == "reward"
    if scores and subject.config and subject.config.get_text_config().pad_token_id in (None, tokenizer.eos_token_id):
        reason = f"config.json's pad_token_id is {subject.config.get_text_config().pad_token_id}, the end is {end}"
        return [fail(what, f"{reason}: scores are read at the wrong token", "set pad_token_id to a token of its own")]
    if pad is not None and pad != end:
        return [ok(what, f"{pad} and {end} differ")]
    if subject.kind in ("recipe", "data"):
        taken = subject.tokenizer.pad_token if subject.tokenizer is not None else "another"
        return [
            ok(what, f"the saved pad is {pad or 'missing'}; the recipe pads with {taken}, so the end stays trained")
        ]
    reason = f"pad is the end token {end}" if pad else "there is no pad token"
    fix = "fourstage's recipes take another pad; elsewhere set one before training"
    return [warning(what, f"{reason}: trainers that mask pads never teach the end", fix)]


def end_of_turn(subject: Subject) -> list[Finding]:
    """The end of a turn is trained once a turn; of a document once a document."""
    what, tokenizer = "end of a turn", subject.tokenizer
    if tokenizer is None or (subject.stage != "pretrain" and not subject.chats):
        return []
    end = tokenizer.eos_token_id if subject.stage == "pretrain" else turn_end(tokenizer)
    if end is None:
        level = fail if subject.stage == "sft" else warning
        reason = "the chat template closes the assistant's turn with no token, so no end is taught"
        return [level(what, reason, "have the template write the end token after the assistant's content")]
    name = tokenizer.convert_ids_to_tokens(cast(int, end))
    if subject.stage not in ("pretrain", "sft") or not subject.encoded:
        return [ok(what, f"the template closes the assistant's turn with {name}")]
    never, fewer, often = [], [], []
    for row in subject.encoded:
        ends = sum(trained and i == end for i, trained in zip(row.ids, row.trained, strict=True))
        turns = row.row.row.get("completion")
        wanted = sum(turn["role"] == "assistant" for turn in turns) if turns else 1
        if ends != wanted:
            (never if not ends else fewer if ends < wanted else often).append(row.row.at)
    fix = "mend the template, or the data, so that one end closes each answer"
    found = [fail(what, f"{name} is never trained in {some(never)}", fix)] if never else []
    found += [fail(what, f"{name} is trained more than once a turn: {some(often)}", fix)] if often else []
    # Some templates close former turns otherwise than the last.
    found += [warning(what, f"{name} does not close every turn of {some(fewer)}", fix)] if fewer else []
    return found or [ok(what, f"{name} is trained once a turn, in {len(subject.encoded):,} rows")]


def double_bos(subject: Subject) -> list[Finding]:
    """A text begins with the begin token once, or never."""
    what, tokenizer = "begin token", subject.tokenizer
    if tokenizer is None or tokenizer.bos_token_id is None:
        return []
    bos = tokenizer.bos_token_id
    twice = [row.row.at for row in subject.encoded if row.ids[:2] == [bos, bos]]
    if not subject.encoded and tokenizer.chat_template and conversation_ids(tokenizer, _ASKED, True)[:2] == [bos, bos]:
        twice = ["the chat template's texts"]
    if twice:
        fix = "take it out of the template or the texts: one of both writes it"
        return [fail(what, f"{tokenizer.bos_token} begins the text twice: {some(twice)}", fix)]
    return [ok(what, f"{tokenizer.bos_token} never stands twice at the beginning")]


def same_text(subject: Subject) -> list[Finding]:
    """Generation begins after what stood before an answer in training: prompt and conversation begin alike."""
    what, tokenizer = "text for training and for use", subject.tokenizer
    if tokenizer is None or not subject.chats or (subject.kind == "run" and subject.stage == "reward"):
        return []
    pairs = [("a probe", _ASKED, _ANSWERED, {})]
    if subject.stage == "sft" and subject.train:
        for row in subject.train.rows[:200]:
            prompt, rest = row.row["prompt"], row.row["completion"]
            pairs.append((row.at, prompt, [*prompt, *rest], template_settings(row.row)))
    thoughts, others, left = [], [], ""
    for at, asked, answered, options in pairs:
        prompt = conversation_ids(tokenizer, asked, True, **options)
        whole = conversation_ids(tokenizer, answered, **options)
        if whole[: len(prompt)] != prompt:
            first = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
            left = str(tokenizer.decode(prompt[first:]))
            (thoughts if "think" in left else others).append(at)
    fix = "have add_generation_prompt write what stands before the assistant's content in a conversation"
    if others:
        return [fail(what, f"generation begins after {left!r}, which training never shows: {some(others)}", fix)]
    if thoughts:
        return [
            warning(what, f"generation begins after {left!r}, such answers are learnt without: {some(thoughts)}", fix)
        ]
    return [ok(what, f"the generation prompt begins what is trained, in {len(pairs):,} conversations")]


def markers_in_texts(subject: Subject) -> list[Finding]:
    """Texts that spell out special tokens: rows that were written by a template before."""
    what, tokenizer = "special tokens in texts", subject.tokenizer
    if tokenizer is None or subject.train is None or subject.settings is None or not subject.train.rows:
        return []
    markers = Markers(tokenizer)
    rows = subject.train.rows
    found = [row.at for row in rows if markers.found_in({k: row.row[k] for k in _TEXTS if k in row.row})]
    if not found:
        return [ok(what, f"none in {len(rows):,} rows")]
    read = "the tokens" if subject.settings.model.keep_markers else "plain words"
    reason = f"spelt out in {some(found)}, and read as {read}"
    return [warning(what, reason, "take them out of the data: a chat template writes them")]


_TEXTS = ("text", "prompt", "completion", "chosen", "rejected")


def vocabulary(subject: Subject) -> list[Finding]:
    """The tokenizer's ids have rows of the embedding."""
    what, tokenizer, config = "vocabulary and embedding", subject.tokenizer, subject.config
    if tokenizer is None or config is None:
        return []
    rows, saved = config.get_text_config().vocab_size, subject.own_tokenizer or tokenizer
    if subject.kind == "recipe" and subject.model is None:
        return [ok(what, f"made together: {rows:,} rows")]
    size, highest = len(saved), max(saved.get_vocab().values(), default=0) + 1
    if max(size, highest) > rows:
        reason = f"the tokenizer has {max(size, highest):,} tokens, the embedding {rows:,} rows"
        return [fail(what, reason, "take the tokenizer that the model was trained with")]
    added = f"; {len(tokenizer) - rows} are added for the pad" if len(tokenizer) > rows else ""
    return [ok(what, f"{size:,} tokens, {rows:,} rows{added}")]


def stops(subject: Subject) -> list[Finding]:
    """Generation stops where the chat template ends a turn."""
    what, tokenizer = "stops", subject.tokenizer
    if tokenizer is None or subject.generation is None or not tokenizer.chat_template or is_gguf(subject.model or ""):
        return []
    made_by = (subject.record or {}).get("stage")
    end, known = turn_end(tokenizer), stop_ids(subject.generation)
    named = [tokenizer.convert_ids_to_tokens(i) for i in known]
    if end is None or made_by == "reward" or subject.stage == "pretrain":
        return []
    name = tokenizer.convert_ids_to_tokens(end)
    if end in known or (not known and end == tokenizer.eos_token_id):
        return [ok(what, f"generation ends at {name}, as the template's turns do")]
    reason = f"generation_config.json ends at {', '.join(map(str, named)) or 'nothing'}, the template's turns at {name}"
    if subject.kind == "recipe" and subject.stage in ("sft", "reward"):
        return [ok(what, f"{reason}; the recipe adds it")]
    level = fail if subject.kind == "run" or made_by in ("sft", "ppo", "grpo") else warning
    return [level(what, reason, f"add {end} to eos_token_id in generation_config.json")]


def reward_tokenizer(subject: Subject) -> list[Finding]:
    """A reward model reads what the policy writes; the critic begins as its copy if both have one vocabulary."""
    what, policy = "reward model's tokenizer", subject.tokenizer
    name = getattr(subject.training, "reward_model_name_or_path", None)
    if policy is None or not name or name not in subject.rewards:
        return []
    own = open_tokenizer(name)
    if own.chat_template is None:
        return [
            fail(what, f"{name} has no chat template, so it cannot read conversations", "name another reward model")
        ]
    if own.pad_token is None or own.pad_token == own.eos_token:
        return [
            fail(what, f"{name} pads with its end token, at which scores are read", "save it with another pad token")
        ]
    if not same_vocabulary(own, policy):
        begins = "; the critic begins as a copy of the policy" if subject.stage == "ppo" else ""
        reason = f"{name} has other tokens than the policy{begins}"
        return [warning(what, reason, "train the reward model from the policy's model, where that is meant")]
    written = [str(each.apply_chat_template(_ANSWERED, tokenize=False)) for each in (own, policy)]
    if written[0] != written[1]:
        return [warning(what, f"{name} writes conversations with another chat template", "check which one is meant")]
    return [ok(what, "the policy's")]


def not_opened(subject: Subject) -> list[Finding]:
    """Says that texts were not looked at where there is no tokenizer to read them."""
    if subject.tokenizer is None and subject.kind == "data":
        fix = "name one with --model_name_or_path to see its texts, ends and lengths"
        return [unknown("tokenizer", "no model was named", fix)]
    return []

"""A plan as a person reads it."""

from fourstage.plan.planning import Plan, remedies

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def describe(plan: Plan, price: float | None = None) -> str:
    """The table of a plan: one block of text. `price`: of a GPU for an hour."""
    lines = [("model", _model(plan)), ("data", _data(plan))]
    total = size(plan.target.device.memory, "GB")
    lines.append(("memory", f"training {size(sum(plan.training.values()))} of {total} ({_parts(plan.training)})"))
    if plan.generation:
        lines.append(("", f"generation {size(sum(plan.generation.values()))} ({_parts(plan.generation)})"))
    lines.append(("", plan.target.device.outside_in_words()))
    lines += _verdict(plan)
    lines.append(("time", _time(plan, plan.seconds, price, ", roughly (--measure times it)")))
    return "\n".join(f"{name:<13}{text}" for name, text in lines)


def size(count: float, unit: str | None = None) -> str:
    """Bytes for people: 31.2 GB, 127 MB. Powers of a thousand, as vendors count."""
    if unit == "GB" or count >= 9.995e8:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.{0 if count >= 9.95e7 else 1}f} MB"


def count(number: float) -> str:
    """A count for people: 2.5B, 65,536."""
    if number < 1e5:
        return f"{number:,.0f}"
    scale, unit = next(pair for pair in _UNITS if number >= pair[0])
    return f"{number / scale:.3g}{unit}"


def _parts(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {size(part)}" for name, part in parts.items() if part >= 1e4)


def _model(plan: Plan) -> str:
    text, found = plan.shapes.policy.get_text_config(), plan.found
    trained = f"; {found.trained:,} trained" if plan.settings.model.use_peft else ""
    return f"{text.model_type}, {found.parameters:,} parameters{trained}; vocabulary {text.vocab_size:,}"


def _data(plan: Plan) -> str:
    training = plan.settings.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * plan.target.processes
    sides = 2 if plan.settings.stage == "reward" else 1
    length = min(plan.amount.mean or plan.row, plan.row)
    length = length + training.max_completion_length if plan.prompt and plan.amount.mean else length
    a_step = rows * sides * (plan.row if plan.prompt and not plan.amount.mean else length)
    how = "" if plan.amount.exact or plan.settings.stage == "pretrain" else "at most "
    longest = (
        f"longest row {plan.row:,}"
        if not plan.prompt
        else f"prompt {plan.prompt:,} + answer {plan.row - plan.prompt:,}"
    )
    if plan.steps is None:
        return f"{how}{a_step:,.0f} tokens a step, {longest}; give --max_steps, as the data are not on this machine"
    total = f"{how}{count(a_step * plan.steps)} tokens, {plan.steps:,} steps of {a_step:,.0f}, {longest}"
    return f"{total}; {plan.flops * plan.steps:.1e} FLOPs"


def _verdict(plan: Plan) -> list[tuple[str, str]]:
    need, memory = size(plan.need, "GB"), size(plan.target.device.memory, "GB")
    several = f" on each of {plan.target.processes} ({plan.target.engine})" if plan.target.processes > 1 else ""
    if plan.fits:
        return [("fits", f"{need} of {memory}{several}")]
    lines = [("does not fit", f"{need} of {memory}{several}; what would help, each alone:")]
    for change, then in remedies(plan):
        if then.need >= plan.need:
            continue
        lines.append(("", f"{change}: {size(then.need, 'GB')}{', fits' if then.fits else ''}"))
    return lines


def timed(plan: Plan, step: float, price: float | None) -> str:
    """How long the run takes if a step takes so many seconds, in one line."""
    compiled = "; compiled, as the run will be, it is shorter" if plan.settings.training.torch_compile else ""
    return _time(plan, step, price, compiled)


def _time(plan: Plan, one: float, price: float | None, remark: str) -> str:
    step = f"a step {one:.2g} s{remark}; evaluations not counted"
    if plan.steps is None:
        return step
    seconds = one * plan.steps
    hours = seconds / 3600
    long = (
        f"about {hours:.2g} h"
        if hours >= 1
        else f"about {seconds / 60:.2g} min"
        if seconds > 90
        else f"about {seconds:.2g} s"
    )
    cost = f", {hours * plan.target.processes * price:,.2f} at {price:g} an hour" if price else ""
    return f"{long}{cost}; {step}"

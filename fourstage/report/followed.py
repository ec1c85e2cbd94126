"""The small report on a round of a person's choices: what was chosen, what a reward model made of it, before and after.

The page has no script and loads nothing. All text, such as what a model or the person wrote, is escaped.
"""

from collections.abc import Mapping
from pathlib import Path

from fourstage.atomic import write_atomically
from fourstage.report import formatting, template_environment
from fourstage.report.load import cut

_LONGEST = 600  # characters of a text
_MOST = 60  # pairs and prompts that are shown


def write_followed(found: Mapping, output: Path) -> Path:
    """Writes the page to `output`, in one step; `found` are the figures of `fourstage.prefer.followed`."""
    environment, prompts = template_environment(), found["prompts"] or []
    environment.filters.update(measured=formatting.with_error, value=formatting.value, sample=_shortened)
    page = environment.get_template("followed.html.jinja").render(
        **found,
        pairs_shown=found["pairs"][:_MOST],
        prompts_shown=prompts[:_MOST],
        changed=sum(prompt["before"] != prompt["after"] for prompt in prompts),
    )
    write_atomically(output, page)
    return output


def _shortened(text: object) -> str:
    return cut(str(text).strip(), _LONGEST)

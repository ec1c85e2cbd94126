r"""An answer as math-verify should read it: signs, fonts, units and notations in plain LaTeX."""

import re
import unicodedata

LENGTH = 512  # the most characters that an answer may have; of 4,500 MATH answers the longest has 81

_ROWS = re.compile(
    r"\\begin\{(align|aligned|gather|gathered|split|equation|eqnarray|multline)(\*?)\}(.*?)\\end\{\1\2\}", re.S
)
_TEXT_SIGNS = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": r"\div "}
    | {
        "\u03c0": r"\pi ",
        "\u221e": r"\infty ",
        "\u2264": r"\le ",
        "\u2265": r"\ge ",
        "\u2260": r"\ne ",
        "\u00b0": r"^\circ ",
    }
    | {"\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ", "\u2205": r"\emptyset ", "\u211d": r"\mathbb{R}"}
    | {
        "\u00b1": r"\pm ",
        "\u2248": r"\approx ",
        "\u2032": "'",
        "\u2019": "'",
        "\u21d2": r"\Rightarrow ",
        "\u2192": r"\to ",
    }
    | {"\u03b8": r"\theta ", "\u03b1": r"\alpha ", "\u03b2": r"\beta ", "\u03bb": r"\lambda ", "\u2026": r"\ldots "}
    | {"\t": " ", "\n": " ", "\r": " ", "\u00a0": " "}
)
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
_SUBSCRIPT = re.compile("[\u2080-\u2089\u2090-\u209c]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_HIDDEN = r"\\(?:h|v)?phantom\s?\{[^{}]*\}|\\[hv]space\*?\s?\{[^{}]*\}|\\(?:label|tag)\s?\{[^{}]*\}"
_FONT = r"\\(?:mathbf|textbf|boldsymbol|bm|underline|mathrm|text|textit|mathit|textrm|mathsf|emph)"
_REWRITINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (_HIDDEN, " "),
        (r"\\(?:text)?color\s?\{[^{}]*\}", ""),
        (_FONT + r"\s?\{([^{}A-Za-z]*[^{}A-Za-z ][^{}A-Za-z]*)\}", r"{\1}"),
        (r"\\mathrm\s?\{([ei])\}", r"{\1}"),
        (r"\\(?:displaystyle|limits|bf|it|rm|therefore|left\.|right\.|quad\s*$)(?![A-Za-z])", " "),
        (
            r"\\(?:textnormal|textrm|textit|mbox|textsf|hbox|textbf|mathrm|mathbf)\s?\{([^{}]*[A-Za-z]{2}[^{}]*)\}",
            r"\\text{\1}",
        ),
        (r"\\\$|(?<!\\)\$", ""),
        (r"\\[()\[\]](?!\d+(?:\.\d+)?(?:em|ex|pt))", " "),
        (r"(\d)\s?(?:percent|pct|percentage)(?![a-z])", r"\1\\%"),
        (r"(?<!\\)%", r"\\%"),
        (r"(?<=\d)(?:\{,\}|,\s?\\!|\\,)\s?(?=\d{3}(?!\d))|(?<=\d) \{,\s?\}\s?(?=\d{3})", ""),  # 12{,}345 and 12,\!345
        (r"(?<!\d)(\d*)\.(\d*)\\(?:overline|bar|dot)\s?(?:\{(\d+)\}|(\d))", lambda m: _repeating(m)),
        (r"^(\d+)\.(\d*?)\((\d+)\)$", lambda m: _repeating(m)),
        (r"(?<!\d)(\d+)\.(\d*?)(\d)\3{2,}\s?(?:\.\.\.|\\ldots|\\dots|\\cdots)", lambda m: _repeating(m)),
        (r"(?<!\d)(\d+)\.(\d*?)(\d{2,6}?)\3+\s?(?:\.\.\.|\\ldots|\\dots|\\cdots)", lambda m: _repeating(m)),
        (r"\u221b\s?(?:\(([^()]*)\)|(\d+|[A-Za-z]))", lambda m: rf"\sqrt[3]{{{m[1] or m[2]}}}"),
        (r"\u221a\s?(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}"),
        (r"(?<![\\A-Za-z])sqrt\s?(?:\(([^()]*)\)|\{?(\d+)\}?)", lambda m: rf"\sqrt{{{m[1] or m[2]}}}"),
        (r"(?<=[\w)])\s?\*\*\s?(?=[\w(])", "^"),
        (r"(?<=[\d)}])\s?\*\s?(?=[\w\\(])", r" \\cdot "),
        (r"(?<=\d)\s?[xX]\s?(?=\d)|(?<=\d) [xX] (?=\d)", r" \\times "),
        (r"(?<![\d/.^_{])(\d+)\s+(\d+)\s?/\s?(\d+)(?![\d/^])", r"\1\\frac{\2}{\3}"),  # 2 1/2
        (r"(?<=\d)\s?\\q?quad\s?(?=\d)", ","),
        (r"(?<=[\w})]) ?\\text\s?\{[^{}]*[A-Za-z][^{}]*\}\s*(?=-?\d)", lambda m: _joint(m[0])),
        (r"(?<![\\A-Za-z{])(?:,\s*)?\b(and|or)\b(?![^{}]*\})", r" \\text{ \1 } "),
        (r"\\(?:lor|vee)(?![A-Za-z])", r" \\text{ or } "),
        (r"\\(?:land|wedge)(?![A-Za-z])", r" \\text{ and } "),
        (r"^.*\\(?:implies|Rightarrow|Longrightarrow|Leftrightarrow|iff)(?![A-Za-z])", ""),
        (r":=", "="),
        (r"^\\\{\s*([A-Za-z])\s*(?:\\mid|\||:)\s*([^{}]*\1[^{}]*)\\\}$", r"\2"),  # {x | x > 3}
        (r"^\s*\d+\s*\\equiv\s*(-?\d+)\s*(?:\\pmod.*|\\?\(\s*\\?mod.*)?$", r"\1"),
        (r"\s?\\frac\s?\{\s?\\text\s?\{[^{}]*\}\s?\}\s?\{\s?\\text\s?\{[^{}]*\}\s?\}$", ""),
        (r"(?<![A-Za-z])log_(\d+)", r"log_{\1}"),
        (r"~", " "),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"(?<![\\A-Za-z])(?:infinity|inf)(?![A-Za-z])", r"\\infty"),
        (r"^(?:\\text\s?\{)?\s?[Aa]ll (?:real numbers|reals)\s?\}?$", r"\\mathbb{R}"),
        (r"^\[(\[[^\[\]]+\](?:,\s*\[[^\[\]]+\])*)\]$", lambda m: _matrix(m[1])),
    ]
]


def as_latex(text: str) -> str | None:
    r"""An answer in one line of ASCII and LaTeX, without markup; None where nothing is left or it is too long.

    Example: "5\u221a2" -> r"5\sqrt{2}"; r"0.\overline{6}" -> r"\frac{6}{9}"; "2 1/2" -> r"2\frac{1}{2}".
    """
    if len(text) > LENGTH:
        return None
    text = _ROWS.sub(lambda match: _last_row(match[3]), text)
    text = re.sub(r"\\begin\{cases\}(.*?)\\end\{cases\}", lambda m: re.sub(r"\\\\|&", ",", m[1]), text, flags=re.S)
    text = _SUPERSCRIPT.sub(lambda m: f"^{{{_digits(m[0])}}}", text)
    text = _SUBSCRIPT.sub(lambda m: f"_{{{_digits(m[0])}}}", text)
    text = _VULGAR.sub(lambda m: _vulgar(m[0]), text)
    text = "".join(
        str(unicodedata.decimal(sign)) if sign.isdecimal() else sign
        for sign in text.translate(_TEXT_SIGNS)
        if unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )
    text = text.strip().strip("*`").strip()
    for pattern, replacement in _REWRITINGS:
        text = pattern.sub(replacement, text)
    text = re.sub(r"^\s*(?:=>?|(?:[A-Za-z][A-Za-z ()]*|\\text\{[^{}]*\})\s?:\s+)", "", text.strip())
    text = re.sub(r"(?:[.,;:\s]|\\[,;: ])+$", "", text)
    return text if text and len(text) <= LENGTH else None


def _vulgar(sign: str) -> str:
    above, _, below = unicodedata.normalize("NFKC", sign).partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def _digits(text: str) -> str:
    return "".join("-" if sign == "\u207b" else unicodedata.normalize("NFKC", sign) for sign in text)


def _repeating(match: re.Match) -> str:
    """A repeating decimal as a fraction, with its whole part before it."""
    whole, fixed, repeated = match[1] or "0", match[2], next(group for group in match.groups()[2:] if group)
    denominator = "9" * len(repeated) + "0" * len(fixed)
    numerator = int(whole + fixed + repeated) - int(whole + fixed)
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def _last_row(rows: str) -> str:
    """The last row of an align block; where it begins with =, the left side of the first row stands before it."""
    lines = [line.replace("&", " ").strip() for line in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", rows)]
    return next((line for line in reversed(lines) if line), "")


def _matrix(rows: str) -> str:
    """[1, 2], [3, 4] as a matrix."""
    lines = [row.replace(",", "&") for row in re.findall(r"\[([^\[\]]+)\]", rows)]
    return r"\begin{pmatrix}" + r"\\".join(lines) + r"\end{pmatrix}"


def _joint(text: str) -> str:
    word = re.search(r"\b(and|or)\b", text)
    return rf" \text{{ {word[1]} }} " if word else ", "

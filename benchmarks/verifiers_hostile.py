r"""Every verifier against generated hostile text: does it hang, grow, or execute anything?

    python benchmarks/verifiers_hostile.py [--count 20000] [--seed 0] [--only math number] [--role completion]
        [--output FILE]

Each text is given to each verifier alone, as a completion, as the right answer (`--role gold`), or in batches of 64
(`--batch 64`; the times are then a batch's). A table and JSON: milliseconds (`cpu`: of this process alone,
which another program on the machine does not lengthen), the growth of this process's peak memory,
the peak of the math worker's and how often it was replaced, and what was seen to be executed: audit events of this
process while a verifier ran, and of the worker, and files that injected commands would leave. The program fails (status
1) where there was any, or where a reward was neither a finite number nor None.
"""

import argparse
import inspect
import json
import math as mathematics
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
MEGABYTE = 1_000_000

INJECTIONS = [
    "__import__('os').system('touch CANARY')",
    "__import__('subprocess').run(['touch', 'CANARY'])",
    "__import__('pathlib').Path('CANARY').touch()",
    "open('CANARY', 'w').write('x')",
    "eval(\"__import__('os').system('touch CANARY')\")",
    "exec(compile('import os; os.mknod(\"CANARY\")', 'x', 'exec'))",
    "(lambda: __import__('os').system('touch CANARY'))()",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0](['touch', 'CANARY'])",
    "1 if __import__('os').system('touch CANARY') else 2",
    "7; import os; os.system('touch CANARY')",
    "sympify(\"__import__('os').system('touch CANARY')\")",
    "parse_expr(\"open('CANARY','w')\")",
    "Symbol('x', real=__import__('os').system('touch CANARY'))",
    "lambdify(x, \"__import__('os').system('touch CANARY')\")(1)",
    'S(\'__import__("os").system("touch CANARY")\')',
    r"\input{/etc/passwd}",
    r"\immediate\write18{touch CANARY}",
    r"\write18{touch CANARY}",
    r"\openout0=CANARY \write0{x}\closeout0",
    r"\directlua{os.execute('touch CANARY')}",
    r"\include{CANARY}\usepackage{shellesc}\ShellEscape{touch CANARY}",
    r"\operatorname{__import__('os').system('touch CANARY')}",
    r"\text{__import__('os').system('touch CANARY')}",
    r"\mathrm{exec}(\text{open('CANARY','w')})",
    r"x_{__import__('os').system('touch CANARY')}",
    r"\begin{pmatrix} __import__('os').system('touch CANARY') \\ 1 \end{pmatrix}",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{0.__class__.__init__.__globals__}",
    "{self.__class__}{completion!r:>1000000000}",
    "%(x)s %n %s %1000000000d",
    "`touch CANARY`",
    "$(touch CANARY)",
    "; touch CANARY #",
    "| touch CANARY",
    "7 && touch CANARY",
    "cos\nsystem\n(S'touch CANARY'\ntR.",
    "\x80\x02cposix\nsystem\n(S'touch CANARY'\ntR.",
    "!!python/object/apply:os.system ['touch CANARY']",
    "<script>require('child_process').execSync('touch CANARY')</script>",
    "'; DROP TABLE rewards; --",
    "${jndi:ldap://127.0.0.1/CANARY}",
    "file:///etc/passwd http://127.0.0.1:9/CANARY",
    "../../../../../../etc/passwd",
    "<!ENTITY x SYSTEM 'file:///etc/passwd'>",
]
# The last eight pass the guards of `math`: its worker has to be stopped.
TOWERS = [
    "9^{9^{9^9}}",
    "9**9**9**9",
    "9^9^9^9^9",
    "(9^(9^(9^9)))",
    r"\left(9^{9}\right)^{9^{9^9}}",
    "10^{10^{10}}",
    "2^{99999999999}",
    "1e999999999",
    "-1.5E+999999999",
    "7 * 10 ** 999999999",
    "999999999!",
    "((((9!)!)!)!)!",
    "9!!!!!!!!!",
    "\u2079^{\u2079^{\u2079\u2079}}",
    "9\u2079\u2079\u2079\u2079",
    r"9^{9^{9}}\cdot 9^{9^9}",
    r"\exp(\exp(\exp(\exp(9))))",
    r"9\uparrow\uparrow 9",
    r"\sqrt[9^{9^9}]{9^{9^{9^9}}}",
    "pow(9, pow(9, pow(9, 9)))",
    "x^{x^{x^{x^x}}}",
]
SLOW = [
    "((((9^{9999})^{9999})^{9999})^{9999})",
    "(9^9)!",
    r"\binom{10^9}{5\cdot 10^8}",
    "(x+y+z+w)^{9999}",
    r"\left(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}\right)^{99}",
    r"\int_0^1 \frac{\sin(x^2+\sqrt{x^3+1})}{\ln(x+2)e^{x^7}} dx",
    r"\sum_{k=1}^{9999} \sum_{j=1}^{9999} \frac{\sin(kj)}{k^2+j^2}",
    r"\sqrt[9999]{9^{9999}+1}",
]
PIECES = r"""
    a . , / % - + * = ^ _ # $ \ ! ~ & | ( [ { < e E 0 1, 1. 1/ 1e 1+ -1 (1 1) $1 1% ** __ () {} x^ ^{ _{ =1 1= 1,111
    1.1. (A) #### \boxed{ \boxed{1} \boxed \fbox{ \frac{ \frac{1}{ \sqrt{ \sqrt \, \text{ \left( \begin{pmatrix} \\ \!
    {,} <think> </think> <think></think> <answer> <answer>1</answer> answer $$ \( \[
    """
REPEATED = [
    *PIECES.split(),
    " ",
    "\t",
    "\n",
    "1 ",
    "1+1=2 ",
    "A ",
    "A or ",
    "B) ",
    "#### 1\n",
    "#### ",
    r"\boxed {",
    "1 & ",
    "$ $",
]
REPEATED += ["answer is ", "answer: ", "the answer ", "is ", "1 million ", "dollars and ", "negative ", "one half "]
REPEATED += list(
    "\u00bd\u0661\uff11\u00b2\u202e\u200b\x00\ufeff\u0301\U0001f4a9\ud800\u2028\x85\u00a0\u2009\u2212\u2044"
)
INVISIBLE = (
    "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2069\x00\x07\x1b"
)
NESTINGS = [("(", "7", ")"), ("[", "7", "]"), ("{", "7", "}"), (r"\frac{", "1", "}{2}"), (r"\sqrt{", "2", "}")]
NESTINGS += [("(1+", "1", ")"), ("-(", "7", ")"), (r"\boxed{", "7", "}"), (r"\text{", "7", "}"), ("x^{", "2", "}")]
NESTINGS += [(r"\left(", "7", r"\right)"), ("[{(", "7", ")}]"), ("<think>", "", "</think>"), ("$", "7", "$")]
DIGITS = "\u0660\u06f0\u0966\u09e6\u0e50\u3021\u2460\u2070\u2080\uff10\U0001d7ce"  # zeros, or firsts, of other scripts
ORDINARY = ["7", "The answer is 7.", r"\boxed{7}", "#### 7", "B", "(25 + 2) + 60", "<think>7</think>7", "4 + 5 = 9."]


# The texts


def texts(count: int, seed: int):
    """`count` hostile texts, from 10 characters to a megabyte, the same for the same seed."""
    rng = random.Random(seed)
    kinds = (_injection, _tower, _digits, _nested, _repeated, _repeated, _invisible, _foreign, _noise, _mixture)
    for _ in range(count):
        kind = _slow if rng.random() < 0.005 else rng.choice(kinds)
        yield _framed(rng, kind(rng))


def _size(rng: random.Random) -> int:
    return MEGABYTE if rng.random() < 0.03 else int(10 ** rng.uniform(1, 5))


def _framed(rng: random.Random, text: str) -> str:
    """As it is, or where a verifier looks for an answer."""
    frames = [r"\boxed{%s}", r"so $\boxed{%s}$.", "#### %s", "The answer is %s.", "Answer: %s", "<think>1</think>%s"]
    frames += ["$%s$", "$$%s$$", r"\(%s\)", "<answer>%s</answer>", "<think>%s</think>7", "%s = 7", "7 = %s", "(%s)"]
    return rng.choice(frames).replace("%s", text) if rng.random() < 0.6 else text


def _injection(rng: random.Random) -> str:
    return rng.choice(INJECTIONS)


def _tower(rng: random.Random) -> str:
    return rng.choice(TOWERS)


def _slow(rng: random.Random) -> str:
    return rf"\boxed{{{rng.choice(SLOW)} + {rng.randrange(1000)}}}"


def _digits(rng: random.Random) -> str:
    sign, size = rng.choice(["", "-", "0.", "1/", "1,", "$"]), _size(rng)
    return sign + rng.choice(["9", "0", "10", "1 000 ", "1,000,", "3.14", "12/34 "]) * max(size // 4, 1)


def _nested(rng: random.Random) -> str:
    """Up to 100,000 deep, closed or not."""
    opening, inside, closing = rng.choice(NESTINGS)
    deep = min(_size(rng), 100_000)
    return opening * deep + inside + closing * (deep if rng.random() < 0.6 else rng.randrange(deep + 1))


def _repeated(rng: random.Random) -> str:
    """Bait for regular expressions and scanners: one piece many times, then something that does not fit."""
    piece = rng.choice(REPEATED)
    return rng.choice(["", "7", "a"]) + piece * max(_size(rng) // len(piece), 1) + rng.choice(["", "!", "7", "}", "x"])


def _invisible(rng: random.Random) -> str:
    return "".join(
        sign + rng.choice(INVISIBLE) * rng.choice([0, 1, 1, 100]) for sign in rng.choice(ORDINARY + INJECTIONS)
    )


def _foreign(rng: random.Random) -> str:
    """Digits of other scripts, alone and mixed, as numbers, powers and towers."""
    zeros = rng.sample(DIGITS, 3)
    digits = [chr(ord(rng.choice(zeros)) + rng.randrange(9)) for _ in range(min(_size(rng), 2000))]
    form = rng.choice(["%s", "-%s", "%s.%s", "%s/%s", "%s^%s^%s", "\u202e%s\u202c", "%s,%s", "%s + %s = %s", "A%s"])
    while "%s" in form:
        form = form.replace("%s", "".join(rng.sample(digits, min(len(digits), 300))), 1)
    return form


def _noise(rng: random.Random) -> str:
    """Any code points at all, lone surrogates among them."""
    return "".join(chr(rng.randrange(rng.choice([0x80, 0x3000, 0x110000]))) for _ in range(min(_size(rng), 3000)))


def _mixture(rng: random.Random) -> str:
    kinds = (_injection, _tower, _digits, _nested, _repeated, _invisible, _foreign, _noise)
    parts = [_framed(rng, rng.choice(kinds)(rng))[:100_000] for _ in range(rng.randrange(2, 5))]
    parts += [rng.choice(ORDINARY)] * rng.randrange(2)
    return rng.choice(["", " ", "\n", " = ", ", "]).join(parts)


# What is executed

ALARMING = {"exec", "compile", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"}
ALARMING |= {"subprocess.Popen", "pty.spawn", "pickle.find_class", "marshal.loads", "ctypes.dlopen", "os.remove"}
ALARMING |= {"os.rename", "os.mkdir", "os.putenv", "os.mkfifo", "shutil.rmtree", "urllib.Request", "import"}
# In the worker SymPy compiles, and itself evaluates, numbers and operators, and math-verify's parts import each other.
IN_WORKER = ALARMING - {"exec", "compile", "marshal.loads", "import", "os.fork", "ctypes.dlopen"}
WORKER_HOOK = """
import os, sys
if any("latex_worker" in word for word in sys.orig_argv):
    def hook(event, arguments):
        writes = event == "open" and arguments[0] != os.devnull and (
            set(arguments[1] or "") & set("wax+") or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if event in {events} or event.startswith("socket.") or writes:
            os.mkfifo(os.path.join({folder!r}, f"{{event}}-{{os.getpid()}}"))
            os._exit(77)
    sys.addaudithook(hook)
"""


class Watch:
    """Counts alarming audit events of this process while `on`. A hook cannot be removed: use a process for it."""

    def __init__(self):
        self.on, self.seen = False, Counter()
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if self.on and (event in ALARMING or event.startswith("socket.") or self._writes(event, arguments)):
            if event == "subprocess.Popen" and any("latex_worker" in str(word) for word in arguments[1]):
                return  # a new worker in place of one that ended
            self.seen[event] += 1

    @staticmethod
    def _writes(event: str, arguments: tuple) -> bool:
        if event != "open":
            return False
        _, mode, flags = arguments
        return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


# The run


def columns(name: str, count: int) -> dict:
    """The columns that verifiers read, as TRL hands them over: all to each."""
    golds = {"choice": ["B"], "math": ["7", r"\frac{1}{2}", "x^2+1", "(2,3)", r"\{1,2\}", r"\text{even}", r"2\sqrt{3}"]}
    answers = golds.get(name, ["7", "1/2", "-3.5"])
    return {
        "answer": [answers[i % len(answers)] for i in range(count)],
        "nums": [[25, 2, 60]] * count,
        "target": [87] * count,
        "derivation": ["4 + 5 = 9. 9 - 2 = 7."] * count,
        "prompts": ["What is it?"] * count,
        "completion_ids": [[1, 2, 3]] * count,
    }


def ask(name: str, function: Callable, batch: list[str], role: str) -> list[float | None]:
    """The rewards of a batch; every other one is a conversation."""
    given = columns(name, len(batch))
    if role == "gold":
        given |= {"answer": batch, "derivation": batch}
        batch = ["7"] * len(batch)
    turns = [text if i % 2 else [{"role": "assistant", "content": text}] for i, text in enumerate(batch)]
    return function(completions=turns, **given)


def measure(name: str, function: Callable, args, watch: Watch) -> dict:
    """Times in milliseconds, kilobytes of growth, and what went wrong, for one verifier over all texts."""
    ask(name, function, ["7", "1 + 1", "x"], args.role)  # imports, and the worker's start
    times, processor_times, bad, batch = [], [], [], []
    slowest, peak = (0.0, ""), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, text in enumerate(texts(args.count, args.seed), start=1):
        batch.append(text)
        if len(batch) < args.batch and number < args.count:
            continue
        watch.on, start, processor = True, time.perf_counter(), time.process_time()
        rewards = ask(name, function, batch, args.role)
        times.append(1000 * (time.perf_counter() - start))
        slowest = max(slowest, (times[-1], ascii(batch[0][:30])[:50]))
        processor_times.append(1000 * (time.process_time() - processor))
        watch.on = False
        if not _as_promised(rewards, len(batch), may_be_none=args.role == "gold" or name == "math"):
            bad.append(repr(batch[0][:80]))
        batch = []
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    return {
        "n": args.count,
        **_summary(times),
        **_summary(processor_times, "_cpu"),
        "slowest": slowest[1],
        "growth_kb": growth,
        "bad": bad,
    }


def _as_promised(rewards: list[float | None], count: int, may_be_none: bool) -> bool:
    finite = all(reward is None or mathematics.isfinite(reward) for reward in rewards)
    return len(rewards) == count and finite and (may_be_none or None not in rewards)


def _summary(times: list[float], suffix: str = "") -> dict:
    times = sorted(times)
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    summary = {key: times[min(int(share * len(times)), len(times) - 1)] for key, share in shares.items()}
    return {key + suffix: ms for key, ms in {"mean": sum(times) / len(times), **summary}.items()}


def run(args, folder: Path) -> dict:
    """`folder`: where an injected `touch CANARY` leaves its file, and the worker's hook one named after the event."""
    (folder / "sitecustomize.py").write_text(WORKER_HOOK.format(events=IN_WORKER, folder=str(folder)))
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    os.chdir(folder)
    from fourstage import verifiers
    from fourstage.verifiers.latex import _worker, worker_counts

    warnings.simplefilter("ignore")
    Counter(map(len, texts(300, -1)))  # the largest texts are in the peak of memory from the start
    watch, rows = Watch(), {}
    for name in verifiers.__all__:
        function = getattr(verifiers, name)
        judged = args.role == "completion" or {"answer", "derivation"} & {*inspect.signature(function).parameters}
        if judged and (not args.only or name in args.only):
            rows[name] = measure(name, function, args, watch)
    counts = worker_counts()
    _worker().stop()
    os.chdir(ROOT)
    return {
        "verifiers": rows,
        "executed": dict(watch.seen),
        "left": sorted({path.name for path in folder.iterdir()} - {"sitecustomize.py"}),
        "worker": {**counts, "peak_kb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--role", choices=["completion", "gold"], default="completion")
    parser.add_argument("--output")
    args = parser.parse_args()
    output = Path(args.output).absolute() if args.output else None
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        result = run(args, Path(folder))
    keys = ("mean", "p50", "p99", "p99.9", "max", "p99.9_cpu")
    print(f"{'ms':14}{'n':>7}{''.join(f'{key:>10}' for key in keys)}{'growth MB':>11}  bad  slowest")
    for name, row in result["verifiers"].items():
        times = "".join(f"{row[key]:10.2f}" for key in keys)
        print(f"{name:14}{row['n']:7}{times}{row['growth_kb'] / 1024:11.1f}{len(row['bad']):5}  {row['slowest']}")
    print(f"executed {result['executed']}, left behind {result['left']}, worker {result['worker']}")
    if output:
        output.write_text(json.dumps(result, indent=1))
    sys.exit(bool(result["executed"] or result["left"] or any(row["bad"] for row in result["verifiers"].values())))


if __name__ == "__main__":
    main()

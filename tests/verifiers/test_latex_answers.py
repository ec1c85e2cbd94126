"""`math` on answers as models write them: where the answer stands, how it is written, and what answers nothing.

Each pair is (right answer, completion), labelled by hand.
"""

import random

import pytest

pytest.importorskip("math_verify")

from fourstage.verifiers.latex import math

RIGHT = [
    (r"\{2,7\}", r"\boxed{2} and \boxed{7}"),
    ("2, 7", r"So the solutions are $\boxed{2}$ and $\boxed{7}$."),
    ("7", r"\boxed{2}. Wait, that is wrong. \boxed{7}"),
    ("26", "Some work here.\nA: 26"),
    ("7", "So 7."),
    ("7", "Therefore, 7"),
    ("7", "The answer is 7!"),
    ("5040", r"\boxed{7!}"),
    ("7", "```\n7\n```"),
    ("7", r"He has \$7 now."),
    ("7", "He has $7 now."),
    ("[-1,4]", r"\boxed{-1 \le x \le 4}"),
    (r"(-\infty,2)\cup(3,\infty)", "The solution is x < 2 or x > 3."),
    (r"(-\infty,2)\cup(3,\infty)", "$x < 2$ or $x > 3$"),
    (r"\frac{2}{3}", r"\boxed{0.\overline{6}}"),
    (r"\frac{1}{3}", r"0.\overline{3}"),
    (r"\frac{1}{6}", r"\boxed{0.1\overline{6}}"),
    (r"5\sqrt{2}", "It equals 5√2."),
    (r"\sqrt{10}", "The length is √10 cm."),
    (r"\sqrt{10}+1", "It is 1 + √10."),
    (r"9\pi", "The area is 9π."),
    (r"9\pi", "The area is 9 pi square units."),
    (r"9\pi", "The area is 9π cm²."),
    ("7", r"\begin{align*} x &= 3 + 4 \\ &= 7 \end{align*}"),
    ("7", "We compute\n\\begin{align*}\nx &= 3 + 4 \\\\\n&= 7.\n\\end{align*}"),
    ("7", r"\[\begin{aligned} x &= 3+4 \\ x &= 7 \end{aligned}\]"),
    ("7", "It is 7. I hope this helps!"),
    ("7", "The answer is 7, since 3 + 4 = 7."),
    ("7", "It is 7 (as 3 + 4 = 7 shows)."),
    ("7", "The answer is seven."),
    ("7", r"\boxed{\text{seven}}"),
    ("7", r"\boxed{3}. The final answer is 7."),
    ("7", r"$\boxed{3}$ was my first guess. The final answer is $7$."),
    ("3", r"\boxed{3}. The final answer is clear."),
    (r"\log_{2}(8)=3", r"\boxed{3}"),
    ("5", "At least it is simple: the answer is 5."),
    ("60", r"\boxed{(3)(4)(5)}"),
    ("(3,-1)", "The vertex is (3, -1)."),
    ("2x+3", "The line is y = 2x + 3."),
    (r"\frac{3}{4}", "The probability is 3/4."),
    (r"\frac{3}{4}", "So P = 3/4"),
    ("x^2+1", "The polynomial is x^2 + 1."),
    (r"1.2\times10^{5}", "1.2 x 10^5"),
    ("120000", "The answer is 1.2 × 10⁵."),
    (r"\frac{5}{2}", "2 1/2"),
    (r"\frac{5}{2}", "2½"),
    (r"\frac{1}{2}", "The answer is ½."),
    ("12", "12 inches"),
    ("3, 5", "(a) $\\boxed{3}$\n\n(b) $\\boxed{5}$"),
    ("(2,3)", "$x=2$, $y=3$"),
    ("(2,3)", "So $x = 2$ and $y = 3$."),
    ("2, 3", "The roots are 2 and 3."),
    ("-1, 4", "x = -1 or x = 4"),
    (r"\pm 3", "x = ±3"),
    (r"\text{no real solutions}", "There are no real solutions."),
    (r"\text{Yes}", "Yes."),
    ("10", "In total there are 10 marbles left."),
    ("18", "She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market."),
    ("18", "The final answer is $18$. I hope it is correct."),
    ("18", "**Answer: 18**"),
    ("18", "**18**"),
    ("18", "<answer>18</answer>"),
    ("18", "<answer>$18</answer>"),
    ("18", "The answer is $18."),
    ("18", "The answer is $18.00."),
    ("1234", "The answer is 1,234."),
    ("1234567", "The answer is $1,234,567 dollars."),
    ("x=5", "x = 5"),
    (r"2\sqrt{3}", "2*sqrt(3)"),
    (r"2\sqrt{3}", "The answer is 2 sqrt(3)."),
    (r"2\sqrt{3}", r"2\sqrt{3}\approx 3.46"),
    (r"30^\circ", "The angle is 30°."),
    ("30", "The angle is 30 degrees."),
    ("7", "Step 1: 3+4 = 7\n\n7"),
    ("7", r"2x = 14 \implies x = 7"),
    ("7", r"$$2x = 14 \Rightarrow x = 7$$"),
    ("(0,1]", r"$0 < x \le 1$"),
    ("x>3", r"(3, \infty)"),
    ("x>3", "x > 3"),
    ("3:4", "The ratio is 3:4."),
    ("3:4", "3 : 4"),
    (r"\{1,2,3\}", "{1, 2, 3}"),
    ("4", "There are four."),
    ("25", "5 squared is 25"),
    ("e^2", "The answer is e^2."),
    (r"1-\frac1e", r"\boxed{1-\frac{1}{\mathrm{e}}}"),
    ("y=3x", r"\boxed{3x - y = 0}"),
    (r"\frac{\pi}{6}", "The angle is π/6 radians."),
    (r"\frac{\pi}{6}", "The angle is pi/6."),
    ("1/2", "The probability that the coin lands heads is 1/2."),
    ("8", "The result is 2^3 = 8."),
    ("16", "f(3) = 16"),
    ("16", "Hence f(3) = 16."),
    ("16", "Thus, the value of $f(3)$ is $16$."),
    ("16", "Thus, the value of $f(3)$ is 16."),
    (r"\frac{x}{2}+1", r"Thus $f(x) = \frac{x}{2}+1$ for all $x$."),
    ("45", r"\boxed{45^\circ}"),
    ("100", r"\boxed{100\ \text{km}}"),
    ("1 + 2i", "The root is 1 + 2i."),
    ("3, -3", r"\boxed{x = 3 \text{ and } x = -3}"),
    ("5", "The answer is 5 because it is prime."),
    ("5", "The answer is clear now. It is 5."),
    ("5", "The answer is as follows.\n5 km"),
    ("20", "It takes 20 minutes in total, i.e. a third of an hour."),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"The vector is $\begin{pmatrix} 1 \\ 2 \end{pmatrix}$."),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
]

WRONG = [
    ("7", r"\boxed{2} and \boxed{7}"),
    ("7", r"\boxed{2} or \boxed{7}"),
    (r"(-\infty,2)\cup(3,\infty)", r"$x < 2$ or $x \ge 3$"),
    ("3", r"\boxed{3}. The final answer is 7."),
    ("7", r"\boxed{0=7}"),
    ("7", r"\boxed{x+y=7}"),
    ("7", r"\boxed{|x|=7}"),
    ("7", r"\boxed{7, 7}"),
    ("7", r"\boxed{\phantom{7}}"),
    (r"\log_{2}(8)=3", r"\boxed{1=1}"),
    ("7", "The answer is one of 2, 4, 7"),
    ("7", "The answer is not 7"),
    ("7", "The answer is between 2 and 7"),
    ("7", "It is not 7."),
    ("7", "It isn't 7."),
    ("7", "Either 2 or 7."),
    ("7", "The value lies between 2 and 7."),
    ("2", "The value lies between 2 and 7."),
    ("7", r"\boxed{7\text{ cats and }2\text{ dogs}}"),
    ("2", r"\boxed{7\text{ cats and }2\text{ dogs}}"),
    ("7", "He has 7 cats and 2 dogs."),
    ("2", "He has 7 cats and 2 dogs."),
    ("(7,2)", "7, 2"),
    (r"\{2,3\}", "(3,2)"),
    ("A", "a"),
    ("5", "The answer is at least 5."),
    ("4", "x = -1 or x = 4"),
    ("7", r"\boxed{8 = 7}"),
    (r"4\times 10^{-20}", r"\boxed{9\times10^{-20}}"),
    (r"1+\frac1e", r"\boxed{1-\frac{1}{\mathrm{e}}}"),
    ("7", "I cannot say whether it is 7 or 8."),
    ("7", "7 or 8"),
    ("7", "maybe 6, maybe 7"),
]


@pytest.fixture(scope="module")
def rewards():
    """The rewards of all pairs, in one call."""
    rows = [*RIGHT, *WRONG]
    return dict(zip(rows, math([completion for _, completion in rows], [gold for gold, _ in rows]), strict=True))


@pytest.mark.parametrize("row", RIGHT, ids=lambda row: row[1][-30:])
def test_right(rewards, row):
    assert rewards[row] == 1.0


@pytest.mark.parametrize("row", WRONG, ids=lambda row: row[1][-30:])
def test_wrong(rewards, row):
    assert rewards[row] == 0.0


def test_a_reward_is_the_same_alone_and_in_any_order(rewards, monkeypatch):
    from fourstage.verifiers import latex

    rows = random.Random(0).sample([*RIGHT, *WRONG], 40)
    monkeypatch.setattr(latex._worker(), "_verdicts", {})  # nothing is remembered
    assert [math([completion], [gold])[0] for gold, completion in rows] == [rewards[row] for row in rows]

"""Pairs: who wrote them, who gets them, and that a kill, a full disk or a failing model spoils nothing."""

import errno
import json

import pytest
import torch
from chat_helpers import chain, parrot
from prefer_helpers import SAMPLING, Canned, asked, dealt, lines, stock_at
from transformers import LlamaConfig, LlamaForSequenceClassification

from fourstage.models.tokenizer import train_tokenizer
from fourstage.prefer import stock as stock_module
from fourstage.prefer.pairs import Maker, Pair
from fourstage.prefer.stock import Stock
from fourstage.speaking import Speaker

PLAIN = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}> {% endif %}"


def speaker(name, model, tokenizer):
    return Speaker(name, "sft", True, model, tokenizer)


@pytest.fixture
def random_maker(model, tokenizer):
    prompts = [asked(f"bab {i}") for i in range(8)]
    return Maker([speaker("runs/sft", model, tokenizer)], ["1"], prompts, {"temperature": 1.0, "max_new_tokens": 6})


@pytest.fixture(scope="module")
def two_maker(words, tokenizer):
    """Two models that always say the same, each in a tokenizer and a template of its own."""
    other = train_tokenizer([words[::-1]], 384, 256)
    other.chat_template = PLAIN
    ends_with = other.convert_ids_to_tokens(other("> ", add_special_tokens=False)["input_ids"])[-1]
    one = parrot(tokenizer, chain(tokenizer, "bab, gef!"))
    two = parrot(other, chain(other, "dim.", first=ends_with))
    speakers = [speaker("runs/one", one, tokenizer), speaker("runs/two", two, other)]
    return Maker(speakers, ["1", "2"], [], {"temperature": 0.0, "max_new_tokens": 20})


def test_two_models_answer_in_their_own_tokens_and_stand_on_both_sides(two_maker):
    pairs = [pair for number in range(6) for pair in two_maker.make([asked("fut?"), asked("gef?")], number)]
    said = {"runs/one": "bab, gef!", "runs/two": "dim."}
    for pair in pairs:
        assert [pair.left, pair.right] == [said[model["name"]] for model in pair.models]
        assert {model["name"]: model["weights"] for model in pair.models} == {"runs/one": "1", "runs/two": "2"}
    assert len(pairs) == 12 and len({pair.pair for pair in pairs}) == 12
    assert 2 <= sum(pair.left == "dim." for pair in pairs) <= 10
    assert two_maker.could_differ()


def test_one_model_answers_twice_the_same_for_the_same_number_alone(random_maker):
    prompts = random_maker.prompts
    first, again, other = (random_maker.make(prompts, number) for number in (3, 3, 4))
    assert first == again and {p.pair for p in first}.isdisjoint(p.pair for p in other)
    assert [p.prompt for p in first] == prompts  # answers of random weights differ
    assert all(p.left != p.right and p.models == [{"name": "runs/sft", "weights": "1"}] * 2 for p in first)
    assert random_maker.could_differ()
    random_maker.sampling["temperature"] = 0.0
    assert random_maker.make(prompts, 0) == [] and not random_maker.could_differ()


def test_a_prompt_fits_where_room_for_an_answer_is_left(random_maker, tokenizer):
    fitting = [random_maker.fits(asked(" bab" * count)) for count in range(256)]
    longest = asked(" bab" * (fitting.index(False) - 1))
    size = len(tokenizer.apply_chat_template(longest, add_generation_prompt=True)["input_ids"])
    assert size <= 256 - 8 < size + 3 and fitting == sorted(fitting, reverse=True)


def test_gaps_are_the_difference_of_a_reward_models_scores(random_maker, tokenizer):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1, **shape)
    random_maker.scorer = LlamaForSequenceClassification(config).eval(), tokenizer
    pairs = random_maker.make(random_maker.prompts, 0)

    @torch.no_grad()
    def score(prompt, text):
        turns = [*prompt, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        return random_maker.scorer[0](ids).logits.item()

    gaps = [abs(score(pair.prompt, pair.left) - score(pair.prompt, pair.right)) for pair in pairs]
    assert [pair.gap for pair in pairs] == pytest.approx(gaps, abs=1e-5) and min(gaps) > 0


def test_every_fifth_pair_is_everybodys_and_others_go_to_one_person(tmp_path):
    stock = stock_at(tmp_path)
    got = {"Ada": [], "Bo": [], "Cy": []}
    for turn in range(30):
        for person in got if turn >= 10 else ["Ada", "Bo"]:  # Cy comes late
            got[person] += [pair.pair for pair in dealt(stock, person, 1)]
    stock.end()
    order = [*stock.pairs]
    common = {*order[::5]}
    alone = [name for names in got.values() for name in names if name not in common]
    assert len(alone) == len({*alone}) and all(len({*names}) == len(names) for names in got.values())
    for person, names in got.items():
        mine = [name for name in names if name in common]
        assert mine == order[::5][: len(mine)] and len(mine) >= 5, person  # in order, none left out


def test_the_least_sure_pair_comes_first_and_one_without_a_gap_last(tmp_path):
    gaps = [0.9, 0.1, None, 0.5, 0.3, 0.7, 0.2, 0.8]
    stock = stock_at(tmp_path, Canned(prompts=8, gap=lambda number, i: gaps[i], dry=1), "uncertain")
    assert [pair.gap for pair in dealt(stock, "Ada", 8)] == [0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, None]
    stock.end()


def test_a_restart_deals_what_was_not_dealt_in_the_same_order(tmp_path):
    stock = stock_at(tmp_path)
    before = dealt(stock, "Ada", 3)
    again = stock.repeat(before[0], "Ada")
    stock.name(before[1], "Ada")
    stock.end()
    second = Stock(stock.path, Canned(), "random")
    assert second.pairs == stock.pairs and second.named == {("Ada", before[1].pair)}
    assert second.dealt == {"Ada": [p.pair for p in [*before, again]]}
    assert second.deal("Ada").pair == [*stock.pairs][3]
    assert (again.left, again.right, again.models[0]) == (before[0].right, before[0].left, before[0].models[1])
    assert second.deal("Bo") == before[0]  # common


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_a_kill_cut_off_is_gone_and_its_batch_number_is_not_used_again(tmp_path, cut):
    stock = stock_at(tmp_path, Canned(dry=2))
    dealt(stock, "Ada", 2)
    stock.end()
    content = stock.path.read_bytes()
    stock.path.write_bytes(content[:-cut])
    maker = Canned()
    second = stock_at(tmp_path, maker)
    dealt(second, "Ada", 20)
    second.end()
    assert min(number for number, _ in maker.batches) > max(row["batch"] for row in lines(stock.path)[:1])
    names = [row["pair"] for row in lines(stock.path) if "pair" in row]
    assert len(names) == len({*names})


@pytest.mark.parametrize(
    "content",
    [b"notes\n", b"[1]\n", b'{"pair": "a"}\n', b'{"dealt": "a"}\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"7\n"],
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "prefs.pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="line 1 is no pair of `fourstage prefer`; name another file with --output"):
        Stock(path, Canned())
    assert path.read_bytes() == content


def test_a_folder_in_its_place_is_refused(tmp_path):
    (tmp_path / "prefs.pairs.jsonl").mkdir()
    with pytest.raises(ValueError, match="cannot be read and written .Is a directory.; name another"):
        Stock(tmp_path / "prefs.pairs.jsonl", Canned())


def test_on_a_full_disk_pairs_are_still_dealt_and_written_later(tmp_path, monkeypatch):
    stock = stock_at(tmp_path, Canned(dry=1))
    dealt(stock, "Ada", 1)
    append = stock_module._append

    def half(file, content):
        class Full:
            seek, truncate = file.seek, file.truncate

            def write(self, part):
                if part != content:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return file.write(part[: len(part) // 2])

        append(Full(), content)

    monkeypatch.setattr(stock_module, "_append", half)
    with stock._changed:  # what makes pairs does not write meanwhile
        before = stock.path.read_bytes()
        second = stock.deal("Ada")
        assert second and stock.path.read_bytes() == before
        assert "cannot be written (No space left on device)" in stock.problem
    monkeypatch.undo()
    third = stock.deal("Ada")
    stock.end()
    assert [row["dealt"] for row in lines(stock.path) if "dealt" in row][-2:] == [second.pair, third.pair]


@pytest.mark.parametrize(
    "former",
    [Canned(sampling=SAMPLING | {"temperature": 0.5}), Canned(prompts=[asked("other")] * 3)],
    ids=["sampling", "prompts"],
)
def test_what_was_made_otherwise_is_not_dealt_any_more(tmp_path, former):
    stock = stock_at(tmp_path, former)
    (old,) = dealt(stock, "Ada", 1)
    stock.end()
    second = stock_at(tmp_path)
    found = dealt(second, "Ada", 4) + dealt(second, "Bo", 4)
    second.end()
    assert all(pair.pair not in stock.pairs for pair in found)
    assert second.pairs[old.pair] == old and second.dealt["Ada"][0] == old.pair  # what she sees stays


def test_own_prompts_come_first_once_each_and_survive_a_restart(tmp_path):
    stock = stock_at(tmp_path)
    dealt(stock, "Ada", 1)
    for _ in range(2):  # sent twice
        stock.ask(asked("mine"), "Ada")
    assert stock.is_asking("Ada") or len(stock.pairs) > 0
    (own,) = dealt(stock, "Ada", 1)
    assert own.prompt == asked("mine") and own.person == "Ada"
    assert [pair.prompt for pair in dealt(stock, "Ada", 12) + dealt(stock, "Bo", 12)].count(asked("mine")) == 0
    stock.end()
    stock.ask(asked("later"), "Bo")  # the worker has gone, as after a kill
    second = stock_at(tmp_path)
    assert [pair.prompt for pair in dealt(second, "Bo", 1)] == [asked("later")]
    second.end()
    assert not Stock(stock.path, Canned()).is_asking("Bo")


@pytest.mark.parametrize(("maker", "why"), [(Canned(dry=0), "answers are the same"), (Canned(failures=9), "no mem")])
def test_who_asked_is_told_that_no_pair_came_and_it_is_not_tried_for_ever(tmp_path, maker, why):
    stock = Stock(tmp_path / "p", maker)
    stock.ask(asked("mine"), "Ada")
    stock.start()
    stock.wait("Ada", 30)
    stock.end()
    assert why in stock.notice("Ada") and stock.notice("Ada") is None and not stock.is_asking("Ada")
    assert [prompts for _, prompts in maker.batches].count([asked("mine")] * 4) == 1


@pytest.mark.parametrize(
    ("maker", "why"),
    [
        (Canned(failures=99), "answering failed: RuntimeError: no memory at all"),
        (Canned(dry=0), "the two answers are the same, or were shown before; try a higher --temperature"),
        (Canned(texts=lambda number, i: ("a", "b"), prompts=[asked("q")]), "shown before"),
    ],
    ids=["fails", "same", "shown"],
)
def test_what_hinders_is_said_and_tried_again(tmp_path, maker, why):
    stock = stock_at(tmp_path, maker)
    first = stock.deal("Ada")
    for _ in range(100):
        stock.wait("Ada", 30)
        if stock.problem:
            break
        first = stock.deal("Ada")
    assert why in stock.problem and stock.deal("Ada") is None
    tried = len(maker.batches)
    maker.failures, maker.dry, maker.texts = 0, 10**9, None
    stock.wait("Ada", 30)
    assert stock.deal("Ada") != first and len(maker.batches) > tried
    stock.end()


def test_no_pair_is_made_that_nobody_needs(tmp_path):
    maker = Canned()
    stock = stock_at(tmp_path, maker)
    dealt(stock, "Ada", 1)
    stock.end()
    assert len(stock.pairs) <= 12 + 8 + 1


def test_a_pair_survives_json(random_maker):
    (pair, *_) = random_maker.make(random_maker.prompts, 0)
    assert Pair(**json.loads(json.dumps(pair.__dict__))) == pair
    assert pair.made_by() == random_maker.signature() == pair.swapped("Ada").made_by()

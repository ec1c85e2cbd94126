"""PretrainTrainer and its optimizer, against TRL's own loss, torch's own optimizers and sums done by hand."""

import copy
import io
import math

import pytest
import torch
from datasets import Dataset
from helpers import SHAPE
from torch.nn import functional as F
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, AutoModelForCausalLM, SchedulerType, TrainerCallback
from trl import SFTTrainer

from fourstage.arguments import PretrainConfig
from fourstage.models.tokenizer import train_tokenizer
from fourstage.optim import BatchedMuon, MuonWithAdamW, orthogonal
from fourstage.pretraining import PretrainTrainer, bytes_per_token, packing_strategy

WORDS = ["red", "kite", "über", "river", "the", "old", "man", "saw", "a", "green", "boat"]
TEXTS = [" ".join(WORDS[(i * k) % 11] for k in range(1, 4 + 5 * i)) for i in range(1, 25)]  # 8 to 123 words
HIDDEN = {"llama": ("_proj.weight",), "qwen3": ("_proj.weight",)}
HIDDEN["gpt2"] = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 384, 32)


def tiny(model_type, tied=False):
    torch.manual_seed(0)
    shape = SHAPE if model_type != "gpt2" else {"n_embd": 32, "n_layer": 2, "n_head": 2}
    config = AutoConfig.for_model(
        model_type, vocab_size=384, max_position_embeddings=32, tie_word_embeddings=tied, **shape
    )
    for name in [name for name in config.to_dict() if name.endswith(("pdrop", "dropout"))]:
        setattr(config, name, 0.0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def make_trainer(tmp_path, tokenizer, model, train=None, test=None, **settings):
    chosen = {"max_length": 32, "max_steps": 1, "per_device_train_batch_size": 4, "packing_strategy": "wrapped"}
    chosen |= {"learning_rate": 0.01, "embedding_lr_scale": 2.0, "head_lr_scale": 0.5}
    chosen |= {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "report_to": "none"}
    chosen |= {"shuffle_dataset": False}  # the rows as written, so that a test can name them
    args = PretrainConfig(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, **chosen | settings)
    rows = Dataset.from_list([{"text": text} for text in TEXTS])
    return PretrainTrainer(
        model=model,
        args=args,
        train_dataset=rows if train is None else train,
        eval_dataset=rows if test is None else test,
        processing_class=tokenizer,
        bytes_per_token=bytes_per_token(TEXTS, tokenizer),
    )


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# One step


@pytest.mark.parametrize("use_muon", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2"])
def test_every_parameter_moves(tmp_path, tokenizer, model_type, use_muon):
    model = tiny(model_type)
    before = weights(model)
    make_trainer(tmp_path, tokenizer, model, use_muon=use_muon).train()
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert still == []
    assert all(value.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize("count", [None, 50])
def test_the_lean_loss_is_trls_and_cross_entropy(tmp_path, tokenizer, count):
    model = tiny("qwen3")
    trainer = make_trainer(tmp_path, tokenizer, model, packing=False)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (0, 3, 1)])  # of different lengths: padded
    assert (batch["labels"] == -100).any()
    items = None if count is None else torch.tensor(count)
    lean = trainer.compute_loss(model, dict(batch), num_items_in_batch=items)
    trls = SFTTrainer.compute_loss(trainer, model, dict(batch), num_items_in_batch=items)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    by_hand = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    by_hand = by_hand / ((labels != -100).sum() if count is None else count)
    torch.testing.assert_close(lean, trls)
    torch.testing.assert_close(lean, by_hand)


def test_accumulation_is_one_large_batch(tmp_path, tokenizer):
    """Rows of different lengths, so that a mean of means would differ; plain gradient descent shows the gradients."""
    start, ends = tiny("qwen3"), []
    for size, accumulation in ((8, 1), (1, 8)):
        model = copy.deepcopy(start)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 1}
        options |= {"use_muon": False, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "packing": False}
        make_trainer(tmp_path, tokenizer, model, train=first_rows(8), **options).train()
        ends.append(model)
    for (name, large), (_, accumulated) in zip(*(end.named_parameters() for end in ends), strict=True):
        torch.testing.assert_close(large, accumulated, rtol=1e-5, atol=1e-6, msg=name)

    ids = [(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])[:32] for text in TEXTS[:8]]
    nats = [
        F.cross_entropy(start(input_ids=torch.tensor([row])).logits[0, :-1], torch.tensor(row[1:]), reduction="sum")
        for row in ids
    ]
    (sum(nats) / sum(len(row) - 1 for row in ids)).backward()
    for (name, parameter), value in zip(start.named_parameters(), ends[0].parameters(), strict=True):
        torch.testing.assert_close(parameter - parameter.grad, value, rtol=1e-5, atol=1e-6, msg=name)


def first_rows(count):
    return Dataset.from_list([{"text": text} for text in TEXTS[:count]])


# The optimizer


MUON = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
ADAMW = {"lr": 0.003, "weight_decay": 0.01, "betas": (0.8, 0.95), "eps": 1e-9}


def parameters():
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 4), (4, 6), (8,), (10, 4))]


def joined(some):
    matrices, others = {"params": some[:2], "use_muon": True}, {"params": some[2:], "use_muon": False}
    return MuonWithAdamW([matrices | MUON, others | ADAMW])


def step(optimizers, some, seed):
    torch.manual_seed(seed)
    for parameter in some:
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def test_it_steps_as_torchs_two_optimizers_do():
    ours, theirs = parameters(), parameters()
    one, two = joined(ours), (Muon(theirs[:2], **MUON), AdamW(theirs[2:], **ADAMW))
    for seed in range(5):
        step([one], ours, seed)
        step(two, theirs, seed)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(ours, parameters(), strict=True))


def test_matrices_of_one_shape_step_together_as_torch_steps_each():
    """Two wide, two tall, a single one and two large; one without a gradient in a step."""
    torch.manual_seed(1)
    shapes = ((8, 16), (12, 4), (8, 16), (12, 4), (6, 6), (260, 256), (260, 256))
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    one, other = BatchedMuon(ours, **MUON), Muon(theirs, **MUON)
    for seed in range(5):
        torch.manual_seed(seed)
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = None if number == seed else torch.randn_like(a)
            b.grad = None if a.grad is None else a.grad.clone()
        one.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-3)  # steps are 0.2 x rate x root of the side: up to 0.016 each
        torch.testing.assert_close(one.state[a], other.state[b])


@pytest.mark.parametrize("other", [{"adjust_lr_fn": None}, {"adjust_lr_fn": "original"}, {"nesterov": False}])
def test_other_settings_of_muon_are_torchs(other):
    torch.manual_seed(1)
    ours = [torch.nn.Parameter(torch.randn(12, 4)) for _ in range(2)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = BatchedMuon(ours, **MUON | other), Muon(theirs, **MUON | other)
    for seed in range(3):
        for optimizer, some in zip(optimizers, (ours, theirs), strict=True):
            step([optimizer], some, seed)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_orthogonal_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 16, 24), (2, 24, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape), (3.4445, -4.775, 2.0315), 5, 1e-7).float())
        assert values.min() > 0.4 and values.max() < 1.3
    assert not orthogonal(torch.zeros(2, 3, 4), (3.4445, -4.775, 2.0315), 5, 1e-7).any()


def test_its_saved_state_goes_on_identically():
    straight = parameters()
    optimizer = joined(straight)
    for seed in range(3):
        step([optimizer], straight, seed)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in straight]
    second = joined(resumed)
    second.load_state_dict(torch.load(file))
    for seed in range(3, 6):
        step([optimizer], straight, seed)
        step([second], resumed, seed)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))
    assert len(second.state) == 4


def test_a_scheduler_moves_all_groups_and_their_steps():
    some = parameters()
    optimizer = joined(some)
    scheduler = LambdaLR(optimizer, lambda count: 0.0 if count else 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.0015]
    step([optimizer], some, 0)
    scheduler.step()
    before = [p.detach().clone() for p in some]
    step([optimizer], some, 1)
    assert all(torch.equal(a, b) for a, b in zip(some, before, strict=True))  # a rate of zero moves nothing


# What each needs beside its name, and the share of the peak that is left in the last of 4 steps; None: by the loss.
SCHEDULES = {
    "linear": ({}, 0.25),
    "cosine": ({}, 0.5 + 0.5 * math.cos(0.75 * math.pi)),
    "cosine_with_restarts": ({"num_cycles": 2}, 0.5 + 0.5 * math.cos(0.5 * math.pi)),
    "polynomial": ({"lr_end": 0.002, "power": 1.0}, 0.25 + 0.75 * 0.2),
    "constant": ({}, 1.0),
    "constant_with_warmup": ({}, 1.0),
    "inverse_sqrt": ({"timescale": 1}, 0.5),
    "reduce_lr_on_plateau": ({}, None),
    "cosine_with_min_lr": ({"min_lr": 0.002}, 0.2 + 0.8 * (0.5 + 0.5 * math.cos(0.75 * math.pi))),
    "cosine_warmup_with_min_lr": ({"min_lr": 0.002}, 0.2),  # it counts from 1
    "warmup_stable_decay": ({"num_decay_steps": 4, "decay_type": "linear"}, 0.25),
    "greedy": ({"min_lr": 0.0}, None),
}


def test_every_schedule_of_transformers_is_tried():
    assert SCHEDULES.keys() == {kind.value for kind in SchedulerType}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_of_transformers_scales_all_groups_alike(tmp_path, tokenizer, schedule):
    """Of 4 steps the last is taken at a share of the peak that is worked out by hand; a floor is a share too."""
    kwargs, share = SCHEDULES[schedule]
    settings = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": kwargs, "max_steps": 4}
    if share is None:
        settings |= {"eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(tmp_path, tokenizer, tiny("qwen3"), max_eval_rows=1, **settings)
    rates = []
    trainer.add_callback(_Rates(rates))
    trainer.train()
    peaks = [0.01, 0.02, 0.005, 0.01]  # matrices, embedding, head, vectors
    first = 1.0 if schedule != "cosine_warmup_with_min_lr" else 0.2 + 0.8 * (0.5 + 0.5 * math.cos(0.25 * math.pi))
    assert rates[0] == pytest.approx([peak * first for peak in peaks]) and len(rates) == 4
    if share is not None:
        assert rates[-1] == pytest.approx([peak * share for peak in peaks])


class _Rates(TrainerCallback):
    def __init__(self, rates):
        self.rates = rates

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2"])
def test_each_parameter_has_one_group_and_muon_the_hidden_matrices(tmp_path, tokenizer, model_type, tied):
    model = tiny(model_type, tied)
    frozen = next(name for name, _ in model.named_parameters() if name.endswith(HIDDEN[model_type]))
    model.get_parameter(frozen).requires_grad_(False)
    groups = make_trainer(tmp_path, tokenizer, model).create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = sorted(names[id(p)] for group in groups for p in group["params"])
    assert grouped == sorted(name for name in names.values() if name != frozen)
    in_muon = {names[id(p)] for group in groups if group["use_muon"] for p in group["params"]}
    assert in_muon == {name for name in names.values() if name.endswith(HIDDEN[model_type])} - {frozen}
    assert ("lm_head.weight" in names.values()) is not tied
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    expected = {name: 0.02 if "embed" in name or ".wt" in name or ".wp" in name else 0.01 for name in rates}
    assert rates == expected | ({} if tied else {"lm_head.weight": 0.005})


# Rates


def rates(trainer, steps):
    """Each group's rate during steps 0, 1, 2, ... as a share of its peak."""
    optimizer = trainer.create_optimizer()
    peaks = [group["lr"] for group in optimizer.param_groups]
    scheduler = trainer.create_scheduler(steps, optimizer)
    shares = []
    for _ in range(steps + 1):
        shares.append([group["lr"] / peak for group, peak in zip(optimizer.param_groups, peaks, strict=True)])
        optimizer.step()
        scheduler.step()
    assert all(share == pytest.approx(row[0]) for row in shares for share in row)  # all groups move together
    return [row[0] for row in shares]


@pytest.mark.parametrize("warmup", [4, 0.2])
def test_warmup_stable_decay(tmp_path, tokenizer, warmup):
    trainer = make_trainer(tmp_path, tokenizer, tiny("qwen3"), warmup_steps=warmup, decay_ratio=0.5)
    got = rates(trainer, 20)
    expected = {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 10: 1.0, 11: 0.9, 15: 0.5, 19: 0.1, 20: 0.0}
    assert {at: got[at] for at in expected} == pytest.approx(expected)


def test_cosine(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, tiny("qwen3"), warmup_steps=4, lr_scheduler_type="cosine")
    got = rates(trainer, 20)
    expected = {0: 0.0, 2: 0.5, 4: 1.0, 8: (1 + math.cos(math.pi / 4)) / 2, 12: 0.5, 20: 0.0}
    assert {at: got[at] for at in expected} == pytest.approx(expected)


# Measuring


def test_bits_per_byte_of_an_evaluation(tmp_path, tokenizer):
    model = tiny("qwen3")
    trainer = make_trainer(tmp_path, tokenizer, model, max_eval_rows=6, per_device_eval_batch_size=2)
    metrics = trainer.evaluate()
    rows = torch.tensor(trainer.train_dataset[:6]["input_ids"])  # the same texts are held out here: rows of 32 tokens
    with torch.no_grad():
        logits = model(input_ids=rows).logits[:, :-1]
    nats_per_token = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    tokens = sum(len(tokenizer(text)["input_ids"]) + 1 for text in TEXTS)  # and the end of each document
    size = sum(len(text.encode("utf-8")) for text in TEXTS)
    assert size > sum(map(len, TEXTS))  # some characters have two bytes
    assert metrics["eval_loss"] == pytest.approx(nats_per_token.item(), rel=1e-5)
    assert metrics["eval_bits_per_byte"] == pytest.approx(nats_per_token.item() / math.log(2) * tokens / size, rel=1e-5)


# Packing


def documents(tokenizer):
    return [[tokenizer.bos_token_id, *tokenizer(t, add_special_tokens=False)["input_ids"]] for t in TEXTS]


@pytest.mark.parametrize("streamed", [False, True])
def test_wrapped_rows_hold_every_token_in_order(tmp_path, tokenizer, streamed):
    rows = first_rows(len(TEXTS))
    trainer = make_trainer(tmp_path, tokenizer, tiny("qwen3"), train=rows.to_iterable_dataset() if streamed else rows)
    packed = [[int(token) for token in row["input_ids"]] for row in trainer.train_dataset]
    whole = [ids + [tokenizer.eos_token_id] for ids in documents(tokenizer)]
    assert max(map(len, whole)) > 3 * 32  # some documents are longer than the context
    assert sum(packed, []) == sum(whole, [])
    assert {len(row) for row in packed[:-1]} == {32}


def test_best_fit_rows_hold_every_token(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, tiny("qwen3"), packing_strategy="bfd_split")
    packed = [row["input_ids"] for row in trainer.train_dataset]
    whole = [ids + [tokenizer.eos_token_id] for ids in documents(tokenizer)]
    assert sorted(sum(packed, [])) == sorted(sum(whole, []))
    assert max(map(len, packed)) <= 32


def test_the_plain_strategy_is_chosen_without_flash_attention():
    assert packing_strategy(None) == packing_strategy("sdpa") == "wrapped"


@pytest.mark.parametrize("stream", [False, True])
def test_a_marker_spelt_out_in_a_document_is_plain_text(tmp_path, tokenizer, stream):
    texts = ["It ends with <|eos|>, or <|user|> speaks.", "Harmless.", "At its very end: <|eos|>", "<|bos|>"]
    rows = Dataset.from_list([{"text": text} for text in texts])
    train = rows.to_iterable_dataset() if stream else rows
    trainer = make_trainer(tmp_path, tokenizer, tiny("llama"), train=train)
    ids = [i for row in trainer.train_dataset for i in row["input_ids"]]
    # each document has one beginning and one end; the rest is what the text is without any special token
    assert [ids.count(i) for i in (tokenizer.bos_token_id, tokenizer.eos_token_id)] == [4, 4]
    assert tokenizer.convert_tokens_to_ids("<|user|>") not in ids
    assert tokenizer.decode(ids) == "".join(f"<|bos|>{text}<|eos|>" for text in texts)
    assert trainer.processing_class is tokenizer and "\ufdd0" not in tokenizer.backend_tokenizer.to_str()

"""A plan against hand arithmetic, torch's MemTracker and, once, what a real run allocated."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import SHAPE, TINY, run_program, write_texts
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from fourstage import speed
from fourstage.cli import main
from fourstage.models.sizing import count_parameters
from fourstage.plan import command, hardware
from fourstage.plan.engines import per_process
from fourstage.plan.generation import cache_bytes, generate
from fourstage.plan.hardware import Device
from fourstage.plan.measuring import seconds_of_a_step
from fourstage.plan.models import quantised_bytes
from fourstage.plan.rehearsal import Rehearsed
from fourstage.plan.table import size
from fourstage.plan.watching import Watch
from fourstage.plan.work import Work
from fourstage.rl.decoding import decode

CONFIG = LlamaConfig(vocab_size=512, max_position_embeddings=64, **SHAPE)


def mlp():
    return nn.Sequential(nn.Linear(64, 128, bias=False), nn.ReLU(), nn.Linear(128, 10, bias=False))


def test_bytes_of_a_layer_and_its_step_are_those_of_the_arithmetic():
    with FakeTensorMode():
        model, x = nn.Linear(100, 40, bias=False), torch.empty(8, 100)
        optimizer, watch = torch.optim.Adam(model.parameters()), Watch()
        watch.hold("weights", model)
        with watch:
            for _ in range(2):
                loss = model(x).sum()
                loss.backward()
                optimizer.step()
    weights = 100 * 40 * 4
    kept = {
        "weights": weights,
        "gradients": weights,
        "optimizer": 2 * weights + 4,
    }  # two moments, and a step in float32
    assert kept.items() <= watch.by_part().items()
    # Forward, and one product for the weights' gradient; two steps.
    assert (watch.work.flops, watch.update.flops) == (2 * (2 * 8 * 100 * 40) * 2, 0)
    assert watch.update.starts > 0


def test_the_peak_is_that_of_memtracker_where_it_can_count():
    with FakeTensorMode():
        model, x, tracker, watch = mlp(), torch.empty(32, 64), MemTracker(), Watch()
        tracker.track_external(model)
        watch.hold("weights", model)
        with tracker, watch:
            model(x).square().mean().backward()
    (theirs,) = tracker.get_tracker_snapshot("peak").values()
    assert watch.peak.total() == theirs["Total"]
    assert watch.peak["weights"] == (64 * 128 + 128 * 10) * 4


def test_what_operations_cost_by_hand():
    x, weight = torch.empty(10, 1000), torch.empty(1000, 1000)
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        out = x @ weight
        nn.functional.dropout(out, 0.5)
    assert (watch.work.flops, watch.work.read) == (2 * 10 * 1000 * 1000, 4 * (10 * 1000 + 1000 * 1000 + 10 * 1000))
    assert watch.work.drawn == 10 * 1000 and watch.work.starts >= 3


@pytest.mark.parametrize(("is_gpu", "expected"), [(False, 3.0 + 2.0 + 0.5 + 0.25), (True, 3.0)])
def test_a_cpu_adds_what_a_gpu_does_at_once(is_gpu, expected):
    """3 s of arithmetic in bfloat16 and 2 s of reading, 1,000 starts of 0.5 ms, 25 draws of 10 ms."""
    device = Device("x", 1e9, full=1e9, half=2e9, bandwidth=1e9, outside=0, start=5e-4, draw=0.01, is_gpu=is_gpu)
    work = Work(flops=3e9, read=1e9, starts=500, drawn=12.5) * 2
    assert device.seconds(work, half=True) == expected
    assert device.seconds(Work(read=4e9), half=False) == 4.0


def test_a_slow_product_is_timed_at_a_small_size(monkeypatch):
    monkeypatch.setattr(hardware, "_seconds_of_a_product", lambda one: {128: 0.001, 256: 0.5}[len(one)])
    assert hardware._measured_rate("cpu", torch.bfloat16) == 2 * 256**3 / 0.5


def test_a_token_of_a_rollout_starts_as_many_operations_as_a_real_one():
    """Against a count over the real decode loop, of 4 tokens less 3; its tests of who has ended are not counted."""
    settings = GenerationConfig(do_sample=True, top_k=0, temperature=1.0, pad_token_id=0, eos_token_id=511)
    ids, model, counts = torch.ones(3, 5, dtype=torch.int64), LlamaForCausalLM(CONFIG), []
    for tokens in (3, 4):
        settings.max_new_tokens = tokens
        with hardware._Count() as count:
            decode(model, ids, torch.ones_like(ids), settings)
        counts.append(count.operations)
    trainer = SimpleNamespace(args=SimpleNamespace(num_generations=1, temperature=1.0), optimizer=None)
    with FakeTensorMode():
        _, reading, token = generate(trainer, {"weights": LlamaForCausalLM(CONFIG)}, rows=3, prompt=5, answer=4)
    assert token.starts == pytest.approx(counts[1] - counts[0], rel=0.1)
    weights = count_parameters(CONFIG) - 512 * CONFIG.hidden_size * (not CONFIG.tie_word_embeddings)
    assert token.flops == pytest.approx(2 * 3 * weights, rel=0.1) and reading.flops > token.flops


def test_masks_select_everything_and_logits_are_told_by_their_width():
    with FakeTensorMode(), Watch({512}) as watch:
        logits, mask = torch.ones(2, 8, 512), torch.ones(2, 8, dtype=torch.bool)
        assert logits[mask].shape == (16, 512) and bool(mask.any())
    assert watch.peak["logits"] >= 2 * 8 * 512 * 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_hidden_layers": 2, "num_key_value_heads": 4, "head_dim": 16}, 2 * 2 * 4 * 16 * 3 * 10 * 4),
        ({"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16}, 2 * 2 * 1 * 16 * 3 * 10 * 4),
    ],
)
def test_cache_of_keys_and_values(fields, expected):
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, **fields)
    assert cache_bytes(config, rows=3, tokens=10, width=4) == expected


@pytest.mark.parametrize(
    ("engine", "half", "expected"),
    [
        # P = 1,000,000 float32 weights with AdamW, N = 4; a layer of 100,000 bytes
        ("none", True, {"weights": 4e6, "gradients": 4e6, "optimizer": 8e6}),
        ("ddp", True, {"weights": 4e6, "gradients": 4e6, "optimizer": 8e6, "gradient buckets": 4e6}),
        ("fsdp2", True, {"weights": 1e6, "gradients": 1e6, "optimizer": 2e6, "gathered": 2e5}),
        ("zero2", True, {"weights": 2e6, "gradients": 0.5e6, "optimizer": 3e6}),  # 2 + 2/4 + 12/4 bytes a parameter
        ("zero3", True, {"weights": 0.5e6, "gradients": 0.5e6, "optimizer": 3e6, "gathered": 2e6}),  # fewer than 1e9
        ("zero2", False, {"weights": 4e6, "gradients": 1e6, "optimizer": 3e6}),
    ],
)
def test_a_share_of_each_engine(engine, half, expected):
    peak = {"weights": 4_000_000, "gradients": 4_000_000, "optimizer": 8_000_000, "activations": 7}
    found = Rehearsed(peak, {"weights": 4_000_000}, 1_000_000, 1_000_000, 100_000, 8_000_000)
    assert per_process(found, engine, 4, half) == {**expected, "activations": 7}


def test_an_adapter_critic_has_a_base_of_its_own_beside_an_engine_that_shards():
    """By hand: a head and adapters of 1,000 bytes on a base of 4 MB, of which each of 4 processes has a quarter."""
    found = Rehearsed({"weights": 4_000_000, "critic": 1_000}, {"weights": 4_000_000}, 1_000_000, 0, 0, 0)
    found.shared_base = 4_000_000
    found.critic_trained = 250
    ddp = per_process(found, "ddp", 4, False)
    assert (ddp["critic"], ddp["gradient buckets"]) == (1_000, 1_000)
    assert per_process(found, "fsdp2", 4, False) == {"weights": 1_000_000, "critic": 1_000_250, "gradients": 250}
    found.unit = 300  # the critic is sharded by layers, beside ZeRO-2 too
    assert per_process(found, "zero2", 4, False)["gathered"] == 600


def test_zero3_keeps_no_more_than_a_billion_weights_gathered():
    found = Rehearsed({"weights": 32 * 10**9}, {"weights": 32 * 10**9}, 0, 0, 10**9, 0)
    assert per_process(found, "zero3", 8, True) == {"weights": 2 * 10**9, "gathered": 2 * 10**9}


def test_quantised_matrices():
    assert quantised_bytes(64_000, 4) == 32_000 + 4_000
    assert quantised_bytes(64_000, 4, nested=True) == 32_000 + 1_000 + 15
    assert quantised_bytes(64_000, 8) == 64_000


def test_sizes_are_powers_of_a_thousand():
    assert [size(x) for x in (4_100_000, 127_400_000, 31_200_000_000)] == ["4.1 MB", "127 MB", "31.2 GB"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of which there is nothing but config.json, and chats."""
    folder = tmp_path_factory.mktemp("plan")
    CONFIG.save_pretrained(folder / "model")
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(60)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def planned(folder, *words):
    """The figures of a plan."""
    out = folder / "plan.json"
    status = main(["plan", *words, "--dataset_name", str(folder / "chats.jsonl"), "--json", str(out)])
    assert status == 0
    return json.loads(out.read_text())


def test_config_json_is_enough_and_adapters_alone_have_gradients(folder, capsys):
    start = ["sft", "--model_name_or_path", str(folder / "model"), "--per_device_train_batch_size", "4"]
    whole = planned(folder, *start, "--bf16", "false", "--gpu", "h100", "--num_gpus", "4")
    parameters = count_parameters(CONFIG)
    assert f"{parameters:,} parameters" in capsys.readouterr().out
    angles = 2 * 16 // 2 * 4  # the rotary frequencies, which transformers keeps twice
    assert whole["training"]["weights"] == 4 * parameters + angles
    assert whole["training"]["gradient buckets"] == 4 * parameters
    lora = planned(folder, *start, "--use_peft", "--lora_r", "4")
    inside = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    widths = [(32, 32), (32, 16), (32, 16), (32, 32), inside, inside, inside[::-1]]  # q, k, v, o, gate, up, down
    adapters = 2 * 4 * sum(map(sum, widths))
    assert lora["training"]["weights"] == 4 * (parameters + adapters) + angles
    assert f"{adapters:,} trained" in capsys.readouterr().out


def test_ppo_has_two_bars_and_every_model(folder):
    CONFIG.num_labels = 1
    CONFIG.save_pretrained(folder / "scorer")
    scorer = ["--reward_model_name_or_path", str(folder / "scorer"), "--max_completion_length", "16"]
    small = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--prompt_tokens", "8"]
    found = planned(folder, "ppo", "--model_name_or_path", str(folder / "model"), *scorer, *small)
    models = {"weights", "reference", "critic", "reward model"}
    assert models <= found["training"].keys() and models | {"KV cache"} <= found["generation"].keys()
    assert found["training"]["critic"] == found["training"]["reward model"]
    assert found["generation"].keys() & {"gradients"} == set()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dpo"], "recipe='dpo' must be one of pretrain, sft, reward, ppo, grpo"),
        (["sft", "--config", "missing.yaml"], "--config missing.yaml: no such file"),
        (["sft", "--model_name_or_path", "runs/none", "--dataset_name", "fourstage/demo"], "runs/none does not exist"),
        (["pretrain", "--num_gpus", "0"], "num_gpus=0 must be at least 1"),
        (["pretrain", "--engine", "fsdp2", "--num_gpus", "2"], "engine=fsdp2 shards over GPUs"),
        (["pretrain", "--engine", "none", "--num_gpus", "2"], "engine=none with num_gpus=2"),
        (["pretrain", "--gpu", "h1000"], "gpu='h1000' must be one of h100"),
        (["pretrain", "--gpu_memory", "0"], "gpu_memory=0 must be above 0"),
        (["pretrain", "--max_lenght", "3"], "--max_lenght: unknown; did you mean max_length?"),
        (["pretrain", "--engine", "zero4"], "argument --engine: invalid choice: 'zero4'"),
        (
            ["ppo", "--use_peft", "--load_in_4bit", "--gpu", "h100", "--engine", "fsdp2", "--num_gpus", "2"],
            "engine=fsdp2 with load_in_4bit",
        ),
    ],
)
def test_bad_input_takes_one_line(words, message, capsys, monkeypatch):
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["plan", *words]) == 1
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said


@pytest.mark.slow
def test_an_estimate_is_near_what_a_run_allocates(tmp_path):
    texts = write_texts(tmp_path / "texts.jsonl")
    words = ["--dataset_name", texts, *TINY, "--max_length=64", "--max_steps=600", "--measure"]
    words += ["--json", tmp_path / "plan.json"]
    done = run_program(sys.executable, "-m", "fourstage.cli", "plan", "pretrain", *words)
    found = json.loads((tmp_path / "plan.json").read_text())
    assert 0.95 < found["estimate"] / found["measured"]["allocated"] < 1.15
    step = found["measured"]["seconds"]
    assert 0 < step < 60 and f"a step {step:.2g} s; evaluations not counted" in done.stdout


def test_the_seconds_of_a_step_leave_out_the_first_round():
    ends = [100.0, 101.0, 103.0, 104.0, 106.0]  # the first took long; rollouts make every second step longer
    assert seconds_of_a_step(ends, 1) == 6 / 4 and seconds_of_a_step([100.0, *ends], 2) == 6 / 4


def test_the_seconds_are_of_the_precision_that_the_recipe_chooses(tmp_path, monkeypatch):
    texts, seconds = write_texts(tmp_path / "texts.jsonl"), {}
    monkeypatch.setattr(hardware, "_measured_rate", lambda device, dtype: 4e9 if dtype == torch.bfloat16 else 1e9)
    monkeypatch.setattr(hardware, "_measured_start", lambda device: 0.0)
    words = ["pretrain", "--dataset_name", texts, *TINY, "--json", tmp_path / "plan.json"]
    for pays in (True, False):
        monkeypatch.setattr(speed, "bfloat16_pays", lambda parameters, pays=pays: pays)
        assert main(["plan", *map(str, words)]) == 0
        seconds[pays] = json.loads((tmp_path / "plan.json").read_text())["seconds"]
    assert 4 * seconds[True] == pytest.approx(seconds[False], rel=0.2)  # their attentions differ in operations


def test_a_round_is_what_one_rollout_serves(monkeypatch):
    """Steps so that whole rounds are timed: two rollouts' worth here, 4 steps without rollouts."""
    asked = []
    failed = SimpleNamespace(stderr="no", stdout="")
    monkeypatch.setattr(command.subprocess, "run", lambda words, **options: asked.append(words) or failed)
    for way, a_round in (("resident", 1), ("resident", 3), ("resident", 8), ("allocated", 8)):
        with pytest.raises(ValueError, match="the recipe stopped: no"):
            command.measure("ppo", ["--seed", "1"], way, a_round)
    assert [int(words[words.index("--max_steps") + 1]) for words in asked] == [5, 9, 16, 2]

"""Pushing to the Hub and back: the recipes and the real client against a small Hub on this machine (stub_hub.py)."""

import copy
import json
import os
import subprocess
import sys

import datasets
import pytest
import torch
from helpers import (
    ROOT,
    SMALL_RUN,
    TINY,
    environment,
    files_in,
    record_of,
    run_here,
    snapshot,
    tensors_of,
    write_chats,
    write_texts,
)
from huggingface_hub import ModelCard, constants
from safetensors.torch import load
from stub_hub import StubHub

from fourstage.arguments import ModelArguments
from fourstage.artifact.hub import HubSettings, open_hub
from fourstage.artifact.lineage import measured
from fourstage.cli import main
from fourstage.models.loading import load_causal_lm, load_tokenizer
from fourstage.parent import find_parent, needed_parent

TOKEN, READER = "hf_" + "pushPULLxy" * 3, "hf_" + "readONLYzz" * 3
STAGES = ["pretrain", "sft", "reward", "ppo", "grpo"]
RUN_HERE = "import json, sys; from helpers import run_here; [run_here(*run) for run in json.loads(sys.argv[1])]"
ENDINGS = """if True:
    import json, sys
    from helpers import run_here
    for run in json.loads(sys.argv[1]):
        try:
            run_here(*run)
        except (SystemExit, ValueError) as end:
            print(f"ended by {type(end).__name__}: {end}")
"""
WITHOUT_WAITING = (
    "import time; time.sleep = lambda seconds: None; " + RUN_HERE
)  # the client retries, 23 seconds each time
RL = [*SMALL_RUN, "--gradient_accumulation_steps=2", "--max_completion_length=8", "--max_eval_rows=8"]


def program(hub, home, *words, token=TOKEN, ok=True, **more):
    """Runs a program that knows `hub` as the Hub, with a cache of its own in `home`."""
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(home),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    env = environment(**settings | ({"HF_TOKEN": token} if token else {}) | more)
    words = [sys.executable, *map(str, words)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert (done.returncode == 0) is ok, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def online(hub, home, *runs, code=RUN_HERE, **more):
    """Runs recipes, [stage, flags...] each, one after the other in one program."""
    return program(hub, home, "-c", code, json.dumps([[str(word) for word in run] for run in runs]), **more)


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def add_data(hub, folder):
    """Texts, questions and pairs as data sets of the Hub: .jsonl, and .parquet for the pairs."""
    hub.add("me/texts", {"train.jsonl": write_texts(folder / "texts.jsonl").read_bytes()}, "dataset")
    chats = [{"question": f"What is {i} and {i % 7}?", "answer": f"It is {i + i % 7}."} for i in range(60)]
    hub.add("me/chats", {"data/train.jsonl": jsonl(chats[:50]), "data/test.jsonl": jsonl(chats[50:])}, "dataset")
    pairs = [{"prompt": f"Is {i} odd?", "chosen": f"It is {i}.", "rejected": f"No {i}!"} for i in range(40)]
    datasets.Dataset.from_list(pairs).to_parquet(str(folder / "pairs.parquet"))
    hub.add("me/pairs", {"data/train-0.parquet": (folder / "pairs.parquet").read_bytes()}, "dataset", private=True)


@pytest.fixture
def hub():
    with StubHub().serve() as stub:
        stub.tokens = {TOKEN: "write", READER: "read"}
        yield stub


# The chain: every stage pushed, each from the one before as it is on the Hub, on data from the Hub


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """(hub, folder of the runs, what was printed): five stages, the reward model with adapters and private."""
    folder = tmp_path_factory.mktemp("chain")
    with StubHub().serve() as hub:
        hub.tokens = {TOKEN: "write"}
        add_data(hub, folder)
        push = {
            stage: ["--push_to_hub", "--hub_model_id", f"me/{stage}", "--output_dir", folder / stage]
            for stage in STAGES
        }
        tuned = ["--model_name_or_path", "me/sft"]
        scorer = ["--reward_model_name_or_path", "me/reward"]
        license = ["--model_license=apache-2.0", "--dataset_license=cc-by-4.0"]
        done = online(
            hub,
            folder / "home",
            ["pretrain", "--dataset_name=me/texts", "--max_length=96", *TINY, *SMALL_RUN, *push["pretrain"], *license],
            ["sft", "--model_name_or_path=me/pretrain", "--dataset_name=me/chats", *SMALL_RUN, *push["sft"]],
            ["reward", *tuned, "--dataset_name=me/pairs", "--use_peft", *SMALL_RUN, *push["reward"]]
            + ["--hub_private_repo=true"],
            ["ppo", *tuned, *scorer, "--dataset_name=me/chats", *RL, *push["ppo"]],
            ["grpo", *tuned, "--dataset_name=me/chats", "--reward_funcs=length", "--num_generations=4", *RL]
            + [*push["grpo"], "--hub_strategy=all_checkpoints"],
        )
        yield hub, folder, done.stdout + done.stderr


stages = pytest.mark.parametrize("stage", STAGES)


@pytest.mark.slow
@stages
def test_what_is_on_the_hub_is_what_is_in_the_folder(chain, stage):
    hub, folder, said = chain
    repo, found = hub.repos["model", f"me/{stage}"], hub.files(f"me/{stage}")
    local = {name for name in files_in(folder / stage) if not name.startswith("checkpoints/")} - {"adapter/README.md"}
    checkpoints = {name for name in found if name.startswith("checkpoint-")}
    assert set(found) - checkpoints - {".gitattributes"} == local
    for name in local - {"README.md", "run.json", "trainer_state.json", "adapter/adapter_config.json"}:
        assert found[name] == (folder / stage / name).read_bytes(), name
    assert {name.split("/")[0] for name in checkpoints} == (
        {"checkpoint-2", "checkpoint-4"} if stage == "grpo" else set()
    )
    saved = ["checkpoint-4"] if stage == "ppo" else ["checkpoint-2", "checkpoint-4"]  # PPO's are whole rollouts
    assert repo.titles() == ["first", *saved, f"{stage} finished"]  # none was dropped
    assert f"pushed to {hub.url}/me/{stage}" in said
    assert record_of(folder / stage)["hub"] == {
        "repo_id": f"me/{stage}",
        "revision": "main",
        "commit": repo.refs["main"],
    }
    assert repo.private is (stage == "reward")


@pytest.mark.slow
@stages
def test_nothing_pushed_is_a_pickle_a_path_or_a_secret(chain, stage):
    hub, folder, _ = chain
    for oid, files in hub.repos["model", f"me/{stage}"].commits.items():
        for name, content in files.items():
            assert name.split("/")[-1] != "training_args.bin"
            in_checkpoint = name.startswith(("last-checkpoint/", "checkpoint-"))
            assert in_checkpoint or not name.endswith((".bin", ".pt", ".pth", ".pkl")), name
            for part in (folder, ROOT, TOKEN):
                assert str(part).encode() not in content, f"{name} at {oid} names {part}"
    if stage == "reward":
        adapter = json.loads(hub.files("me/reward")["adapter/adapter_config.json"])
        assert adapter["base_model_name_or_path"] == "me/sft"


@pytest.mark.slow
def test_the_token_is_nowhere(chain):
    """In no file written, no line printed and no body sent; it goes in one header, to this Hub."""
    hub, folder, said = chain
    assert TOKEN not in said
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert [path for _, path, _, body in hub.sent if TOKEN.encode() in body or TOKEN in path] == []
    assert all(TOKEN.encode() not in blob for blob in hub.blobs.values())
    assert any(f"Bearer {TOKEN}" in headers for _, _, headers, _ in hub.sent)
    # A test that cannot fail shows nothing: this finds what was sent.
    assert [path for _, path, _, body in hub.sent if b"trainer_state.json" in body]


@pytest.mark.slow
@stages
def test_the_card_has_the_numbers_and_names_of_the_record(chain, stage):
    hub, folder, _ = chain
    card, record = ModelCard(hub.files(f"me/{stage}")["README.md"].decode()), record_of(folder / stage)
    numbers = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert numbers == measured(record["metrics"]) and len(numbers) >= 3
    assert all(record["metrics"][name] == value for name, value in numbers.items())
    parents = {"pretrain": None, "sft": "me/pretrain"}
    assert card.data.base_model == parents.get(stage, "me/sft")
    assert card.data.datasets == [{"pretrain": "me/texts", "reward": "me/pairs"}.get(stage, "me/chats")]
    assert card.data.pipeline_tag == ("text-classification" if stage == "reward" else "text-generation")
    assert card.data.license == ("apache-2.0" if stage == "pretrain" else None)
    ancestors = [summary["hub"]["repo_id"] for summary in record["lineage"]]
    assert ancestors == ["me/pretrain", "me/sft"][: 0 if stage == "pretrain" else 1 if stage == "sft" else 2]
    for name in ancestors:
        assert f"[{name}](https://huggingface.co/{name})" in card.text
    assert f"from_pretrained('me/{stage}')" in card.text
    assert stage == "pretrain" or "license cc-by-4.0" in card.text


def check_loads(hub, home, folder, places, **more):
    """With an empty cache every weight is the one that was trained; `places`: {stage: (id, revision)}."""
    code = """if True:
        import json, sys
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
        for stage, (name, revision) in json.loads(sys.argv[2]).items():
            kind = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
            model = kind.from_pretrained(name, revision=revision)
            AutoTokenizer.from_pretrained(name, revision=revision)
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, f"{sys.argv[1]}/{stage}.safetensors")
    """
    home.mkdir()
    program(hub, home, "-c", code, home, json.dumps(places), **more)
    for stage in places:
        loaded, trained = load((home / f"{stage}.safetensors").read_bytes()), tensors_of(folder / stage)
        assert trained.keys() <= loaded.keys()
        assert all(torch.equal(loaded[name], value) for name, value in trained.items())


@pytest.mark.slow
def test_what_was_pushed_loads_from_the_hub(chain, tmp_path):
    hub, folder, _ = chain
    check_loads(hub, tmp_path / "home", folder, {stage: (f"me/{stage}", "main") for stage in STAGES})


@pytest.mark.slow
def test_the_record_of_a_parent_on_the_hub_names_its_commit(chain):
    hub, folder, _ = chain
    parent = record_of(folder / "ppo")["parent"]
    assert parent == {"path": "me/sft", "sha256": None, "commit": hub.repos["model", "me/sft"].refs["main"]}
    scorer = record_of(folder / "ppo")["reward_model"]
    assert scorer["commit"] == hub.repos["model", "me/reward"].refs["main"]
    assert record_of(folder / "ppo")["rewarded_by"]["metrics"] == measured(record_of(folder / "reward")["metrics"])


@pytest.mark.slow
def test_the_same_command_on_finished_runs_says_so(chain, tmp_path):
    """In its folder; and on a new machine, whose folder is not there, with the command that fetches it."""
    hub, folder, _ = chain
    before = snapshot(folder / "sft")
    flags = ["sft", "--model_name_or_path=me/pretrain", "--dataset_name=me/chats", *SMALL_RUN]
    flags += ["--push_to_hub", "--hub_model_id=me/sft"]
    commits = len(hub.repos["model", "me/sft"].commits)
    told = online(
        hub,
        tmp_path / "home",
        [*flags, "--output_dir", folder / "sft"],
        [*flags, "--output_dir", tmp_path / "new"],
        [*flags, "--output_dir", tmp_path / "new", "--seed=7"],
        code=ENDINGS,
    ).stdout
    assert f"{folder / 'sft'} is finished" in told
    assert "holds this run, finished" in told and "hf download me/sft" in told
    endings = [line for line in told.splitlines() if line.startswith("ended by")]
    assert endings[:2] == ["ended by SystemExit: 0"] * 2
    assert endings[2].startswith("ended by ValueError") and "holds another run: seed was 42, now 7" in endings[2]
    assert not (tmp_path / "new").exists()
    assert snapshot(folder / "sft") == before
    assert len(hub.repos["model", "me/sft"].commits) == commits


@pytest.mark.slow
def test_every_recipe_streams_from_the_hub(chain, tmp_path):
    hub, folder, _ = chain
    tuned = ["--model_name_or_path", folder / "sft"]
    stream = ["--dataset_streaming", "--test_split_size=0.2", *SMALL_RUN, "--max_steps=2", "--output_dir"]
    more = ["--gradient_accumulation_steps=2", "--max_completion_length=8", "--max_eval_rows=8"]
    online(
        hub,
        tmp_path / "home",
        ["pretrain", "--dataset_name=me/texts", "--max_length=64", *TINY, *stream, tmp_path / "pretrain"],
        ["sft", *tuned, "--dataset_name=me/chats", *stream, tmp_path / "sft"],
        ["reward", *tuned, "--dataset_name=me/pairs", *stream, tmp_path / "reward"],
        ["ppo", *tuned, "--dataset_name=me/chats", "--reward_funcs=length", *more, *stream, tmp_path / "ppo"],
        ["grpo", *tuned, "--dataset_name=me/chats", "--reward_funcs=length", "--num_generations=4", *more]
        + [*stream, tmp_path / "grpo"],
    )
    for stage in STAGES:
        assert record_of(tmp_path / stage)["status"] == "finished"


# A Hub that dies, and a run that goes on from there


@pytest.mark.slow
def test_a_hub_that_dies_stops_no_training_and_the_run_goes_on_elsewhere(hub, tmp_path):
    """It takes the first checkpoint and dies. The run ends by itself, uninterrupted; what it says pushes it later. From
    the state of the Hub before that another machine goes on from step 2 and ends with the same weights."""
    texts = write_texts(tmp_path / "texts.jsonl")
    run = ["pretrain", "--dataset_name", texts, "--max_length=64", *TINY, *SMALL_RUN, "--model_type=gpt2"]
    run += ['--config_overrides={"n_embd": 32, "n_layer": 2, "n_head": 2}', "--num_parameters=45K"]  # with dropout
    run += ["--push_to_hub", "--hub_model_id=gpt", "--output_dir"]
    hub.dies_after = 1
    done = online(hub, tmp_path / "home", [*run, tmp_path / "one"], code=WITHOUT_WAITING)
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
    assert [line.split(":")[1] for line in warnings] == [" checkpoint-4 was not pushed", " not pushed"]
    assert all("cannot be reached" in line for line in warnings)
    command = f"fourstage push {tmp_path / 'one'} --hub_model_id gpt"
    assert f"push it later with: {command}" in done.stdout
    assert record_of(tmp_path / "one")["status"] == "finished" and "hub" not in record_of(tmp_path / "one")
    assert not list((tmp_path / "one").glob(".push-*"))
    files = hub.files("me/gpt")
    assert json.loads(files["run.json"])["status"] == "running"
    assert json.loads(files["last-checkpoint/trainer_state.json"])["global_step"] == 2

    hub.dead, hub.dies_after = False, None
    repo = copy.deepcopy(hub.repos["model", "me/gpt"])
    done = program(hub, tmp_path / "home", "-m", "fourstage.cli", *command.split()[1:])
    assert "pushed to" in done.stdout
    first = dict(hub.files("me/gpt"))
    assert first["model.safetensors"] == (tmp_path / "one" / "model.safetensors").read_bytes()
    assert not [name for name in first if name.startswith("last-checkpoint")]

    hub.repos["model", "me/gpt"] = repo
    done = online(hub, tmp_path / "other", [*run, tmp_path / "two"])
    assert "Fetching the checkpoint of step 2" in done.stdout and "from checkpoint-2" in done.stdout
    assert hub.files("me/gpt")["model.safetensors"] == first["model.safetensors"]
    one, two = record_of(tmp_path / "one"), record_of(tmp_path / "two")
    assert one["metrics"]["eval_loss"] == two["metrics"]["eval_loss"] and one["tokens"] == two["tokens"]
    states = [json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("one", "two")]
    losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in states]
    assert losses[0] == losses[1]


# What open_hub makes and refuses, in this process


@pytest.fixture
def here(hub, monkeypatch, tmp_path):
    """This process takes `hub` for the Hub."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits 23 seconds for what does not answer
    return hub


def test_a_repository_and_its_branches_are_made_once(here, tmp_path):
    for _ in range(2):
        assert open_hub(HubSettings(None, private=True), tmp_path / "my-run", "license: mit").repo_id == "me/my-run"
    repo = here.repos["model", "me/my-run"]
    assert repo.private and list(repo.refs) == ["main"]
    repo.commit("main", {"run.json": b"{}"}, "another stage")
    hub = open_hub(HubSettings("my-run", revision="sft"), tmp_path, "license: mit")
    assert hub.url == f"{here.url}/me/my-run/tree/sft"
    assert here.files("me/my-run", "sft") == {".gitattributes": b""}  # not what main holds by now
    assert hub.record() is None


@pytest.mark.parametrize(
    "case, named",
    [
        ("dead", "cannot be reached"),
        ("offline", "HF_HUB_OFFLINE"),
        ("no token", "hf auth login"),
        ("unknown token", "401"),
        ("read token", "403"),
        ("read token, repository there", "403"),
        ("another's name", "403"),
        ("license", "license"),
        ("public", "public"),
        ("name", "me/bad name"),
    ],
)
def test_what_cannot_be_pushed_is_refused_in_one_line(here, tmp_path, monkeypatch, case, named):
    here.add("me/there", {".gitattributes": b""})
    settings, metadata = HubSettings("me/new"), "license: mit"
    if case == "dead":
        here.dead = True
    elif case == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif case == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif case == "license":
        metadata = "license: my-own"
    elif case.startswith("read token"):
        monkeypatch.setenv("HF_TOKEN", READER)
        settings = HubSettings("me/there") if case.endswith("there") else settings
    else:
        tokens = {"unknown token": "hf_" + "unknownnnn" * 3}
        monkeypatch.setenv("HF_TOKEN", tokens.get(case, TOKEN))
        names = {"another's name": "you/new", "public": "me/there", "name": "me/bad name"}
        settings = HubSettings(names.get(case, "me/new"), private=case == "public")
    with pytest.raises(ValueError) as refused:
        open_hub(settings, tmp_path / "run", metadata)
    message = str(refused.value)
    assert named in message and "hub_model_id=" in message and "\n" not in message
    assert os.environ.get("HF_TOKEN", "none") not in message
    assert ("model", "me/new") not in here.repos or case == "license"


@pytest.mark.parametrize(
    "files, named",
    [
        ({"model.bin": b"x"}, "model.bin"),
        ({"run.json": b"{"}, "not JSON"),
        ({"run.json": b"{}"}, "not of a fourstage run"),
    ],
)
def test_a_repository_of_something_else_is_refused(here, tmp_path, files, named):
    here.add("me/there", {"README.md": b"", **files})
    with pytest.raises(ValueError, match=named) as refused:
        open_hub(HubSettings("me/there"), tmp_path / "run", "license: mit").record()
    assert "\n" not in str(refused.value)


def test_a_gated_parent_and_a_missing_one_have_no_record(here):
    here.add("me/gated", {"run.json": b"{}"}, gated=True)
    for name in ("me/gated", "me/missing"):
        parent = find_parent(name)
        assert parent.record is None and parent.stage is None and not parent.is_base
        assert parent.identity() == {"path": name, "sha256": None, "commit": None}


@pytest.mark.parametrize(
    "name, revision, message",
    [
        ("me/gated", "main", "a gated repository"),
        ("me/missing", "main", "no such repository on the Hub"),
        ("me/open", "no-such-branch", "no such revision"),
    ],
)
@pytest.mark.parametrize("load", [load_tokenizer, lambda model_args: load_causal_lm(model_args, None)])
def test_a_parent_that_cannot_be_had_takes_one_line(here, monkeypatch, name, revision, message, load):
    monkeypatch.delenv("HF_HUB_OFFLINE")  # what the test process itself runs under
    here.add("me/gated", {"config.json": b"{}"}, gated=True)
    here.add("me/open", {"config.json": b"{}"})
    with pytest.raises(ValueError, match=message) as refused:
        load(ModelArguments(model_name_or_path=name, model_revision=revision))
    assert "\n" not in str(refused.value) and str(refused.value).startswith(name)


def test_a_hub_that_is_not_there_takes_one_line(here, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    dead = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", dead)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", dead + "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(ValueError, match="me/open: the Hub cannot be reached") as refused:
        load_tokenizer(ModelArguments(model_name_or_path="me/open"))
    assert "\n" not in str(refused.value)


# A base of ours is known as one wherever it lies: on a branch, or on the Hub


@pytest.fixture
def branches(here, base, monkeypatch):
    """me/stages: a tuned model on main, a base on the branch `pretrain`; the weights are the same."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    files = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    tuned = json.dumps(record_of(base) | {"stage": "sft"}).encode()
    repo = here.add("me/stages", files | {"run.json": tuned})
    repo.refs["pretrain"] = repo.refs["main"]
    repo.commit("pretrain", files, "the base")
    return "me/stages"


def test_a_parent_is_what_its_revision_says(branches):
    tuned, base = find_parent(branches), needed_parent(branches, "pretrain", "sft")
    assert (tuned.stage, tuned.is_base, base.stage, base.is_base) == ("sft", False, "pretrain", True)
    assert tuned.commit != base.commit and base.identity()["commit"] == base.commit


@pytest.mark.parametrize("revision, marked", [("pretrain", True), ("main", False)])
def test_adapters_on_a_base_of_a_branch_train_the_template_s_tokens(branches, tmp_path, revision, marked):
    chats = write_chats(tmp_path / "chats.jsonl")
    parent = ["--model_name_or_path", branches, "--model_revision", revision, "--use_peft"]
    run_here("sft", *parent, "--dataset_name", chats, "--output_dir", tmp_path / "sft", *SMALL_RUN)
    config = json.loads((tmp_path / "sft" / "adapter" / "adapter_config.json").read_text())
    assert bool(config["trainable_token_indices"]) == marked
    assert record_of(tmp_path / "sft")["lineage"][-1]["stage"] == ("pretrain" if marked else "sft")


@pytest.mark.parametrize("flags, does", [(["--revision", "pretrain"], "it continues text"), ([], "it chats")])
def test_chat_knows_a_base_of_the_hub(branches, capsys, flags, does):
    assert main(["chat", branches, *flags, "--prompt", "the old man", "--max_new_tokens", "2"]) == 0
    assert does in capsys.readouterr().err


# The real Hub, where a person asks for it


def stages_on_branches(name, folder):
    """Five stages, each pushed to a branch of its own of one private repository, and gone on from there."""
    texts, chats = write_texts(folder / "texts.jsonl"), write_chats(folder / "chats.jsonl")
    pairs = folder / "pairs.jsonl"
    pairs.write_bytes(
        jsonl([{"prompt": f"Is {i} odd?", "chosen": f"It is {i}.", "rejected": f"No {i}!"} for i in range(40)])
    )
    to = ["--push_to_hub", "--hub_model_id", name, "--hub_private_repo=true"]
    push = {stage: [*to, "--hub_revision", stage, "--output_dir", folder / stage] for stage in STAGES}
    base, tuned = (["--model_name_or_path", name, "--model_revision", stage] for stage in ("pretrain", "sft"))
    rewards = {"ppo": ["--reward_funcs=length"], "grpo": ["--reward_funcs=length", "--num_generations=4"]}
    return [
        ["pretrain", "--dataset_name", texts, "--max_length=96", *TINY, *SMALL_RUN, *push["pretrain"]],
        ["sft", *base, "--dataset_name", chats, *SMALL_RUN, *push["sft"]],
        ["reward", *tuned, "--dataset_name", pairs, *SMALL_RUN, *push["reward"]],
        *([stage, *tuned, "--dataset_name", chats, *RL, *rewards[stage], *push[stage]] for stage in rewards),
    ]


REAL = pytest.mark.skipif(
    not (os.environ.get("HF_TOKEN") and os.environ.get("FOURSTAGE_TEST_HUB_REPO")),
    reason="needs HF_TOKEN and FOURSTAGE_TEST_HUB_REPO, OWNER/NAME of a repository that is new or empty",
)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["stub", pytest.param("real", marks=REAL)])
def test_five_stages_on_branches_of_one_private_repository(hub, tmp_path, where):
    """On the real Hub: HF_TOKEN=... FOURSTAGE_TEST_HUB_REPO=OWNER/NAME pytest -m slow tests/artifact -k real"""
    name, more = "me/stages", {}
    if where == "real":
        name = os.environ["FOURSTAGE_TEST_HUB_REPO"]
        more = {"token": os.environ["HF_TOKEN"], "HF_ENDPOINT": "https://huggingface.co", "HF_HUB_DISABLE_XET": "0"}
    online(hub, tmp_path / "home", *stages_on_branches(name, tmp_path), **more)
    commits = {stage: record_of(tmp_path / stage)["hub"]["commit"] for stage in STAGES}
    check_loads(hub, tmp_path / "new", tmp_path, {stage: (name, commits[stage]) for stage in STAGES}, **more)
    assert record_of(tmp_path / "grpo")["parent"]["commit"] == commits["sft"]
    for stage in STAGES:
        cached = tmp_path / "new" / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / commits[stage]
        assert (cached / "model.safetensors").is_file()

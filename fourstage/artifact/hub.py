"""Pushes a run to the Hub, checkpoint by checkpoint, and takes it up again from there on another machine.

The trainer does not push: it would drop checkpoints while an earlier one is on its way, and upload training_args.bin, a
pickle that can hold the token. Checkpoints go up from one worker thread, in order: training does not wait for them, and
none is left out.
"""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    is_offline_mode,
)
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import disable_progress_bars
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from fourstage.artifact.upload import LAST, remove_staged, stage_checkpoint, stage_finished
from fourstage.errors import one_line
from fourstage.parent import is_run

_WITHOUT_MODEL = {".gitattributes", "README.md", "LICENSE"}  # what a repository made by hand may begin with


@dataclass
class HubSettings:
    """Where a run is pushed to: fields of transformers' TrainingArguments (hub_model_id and so on)."""

    model_id: str | None
    private: bool | None = None
    revision: str | None = None
    strategy: str = "every_save"

    def push_command(self, folder: Path) -> str:
        """The command that pushes the finished folder later."""
        words = ["fourstage", "push", str(folder)]
        words += ["--hub_model_id", self.model_id] if self.model_id else []
        words += ["--private"] if self.private else []
        return shlex.join(words + (["--revision", self.revision] if self.revision else []))


def take_settings(training_args: TrainingArguments) -> HubSettings | None:
    """The settings of a push if one is asked for; the trainer is told of none."""
    if not training_args.push_to_hub:
        return None
    training_args.push_to_hub = False
    args = training_args
    return HubSettings(
        args.hub_model_id, args.hub_private_repo, args.hub_revision, HubStrategy(args.hub_strategy).value
    )


@dataclass
class Hub:
    """A repository that may be written to, on branch `revision`."""

    api: HfApi
    repo_id: str
    revision: str
    strategy: str
    pending: list[Future] = field(default_factory=list)

    @property
    def url(self) -> str:
        branch = "" if self.revision == "main" else f"/tree/{self.revision}"
        return f"{constants.ENDPOINT}/{self.repo_id}{branch}"

    def files(self) -> list[str]:
        return self.api.list_repo_files(self.repo_id, revision=self.revision)

    def record(self) -> dict | None:
        """run.json of the repository, None if it has none."""
        with hub_errors(self.repo_id):
            files = self.files()
            if "run.json" not in files:
                if others := sorted({*files} - _WITHOUT_MODEL):
                    raise ValueError(
                        f"it holds {others[0]}, which no fourstage run left there; choose another repository"
                    )
                return None
            path = self.api.hf_hub_download(self.repo_id, "run.json", revision=self._commit_id())
            record = _json(path)
            if not is_run(record):
                raise ValueError("its run.json is not of a fourstage run; choose another repository")
            return record

    def restore(self, folder: Path) -> bool:
        """Downloads the newest checkpoint into the run folder; whether there was one."""
        fetched = folder / ".fetched"
        shutil.rmtree(fetched, ignore_errors=True)
        try:
            with hub_errors(self.repo_id):
                steps, commit = self._checkpoints(), self._commit_id()
                if not steps:
                    return False
                name = max(steps, key=steps.__getitem__)
                print(f"Fetching the checkpoint of step {steps[name]} from {self.url}", flush=True)
                wanted = [f"{name}/*", "completions.jsonl"]
                self.api.snapshot_download(self.repo_id, revision=commit, allow_patterns=wanted, local_dir=fetched)
            checkpoint = folder / "checkpoints" / f"checkpoint-{steps[name]}"
            shutil.rmtree(checkpoint, ignore_errors=True)  # a part of one, or it would have been gone on from
            checkpoint.parent.mkdir(exist_ok=True)
            (fetched / name).rename(checkpoint)
            if (fetched / "completions.jsonl").is_file():
                (fetched / "completions.jsonl").replace(folder / "completions.jsonl")
        finally:
            shutil.rmtree(fetched, ignore_errors=True)
        return True

    def push_checkpoint(self, folder: Path, checkpoint: Path, record: dict) -> None:
        """Puts the checkpoint in line and returns; it replaces the one before it, or has a folder of its own with
        hub_strategy all_checkpoints."""
        if self.strategy == "end":
            return
        name = checkpoint.name if self.strategy == "all_checkpoints" else LAST
        staged = stage_checkpoint(folder, checkpoint, record, name)
        self.pending.append(self.api.run_as_future(self._push_staged, staged, name, checkpoint.name))

    def push_finished(self, folder: Path, record: dict, card: str) -> None:
        """Waits for the checkpoints in line, uploads the finished stage, and notes in `record` where it is.

        The last checkpoint is taken away: what it was for is done.
        Raises:
            ValueError: of one line, if the Hub does not take it.
        """
        for future in self.pending:
            future.result()
        staged = stage_finished(folder, record, card)
        try:
            with hub_errors(self.repo_id):
                done = self.api.upload_folder(
                    repo_id=self.repo_id,
                    folder_path=staged,
                    revision=self.revision,
                    commit_message=f"{record['stage']} finished",
                    delete_patterns=[f"{LAST}/*"],
                )
        finally:
            shutil.rmtree(staged)
        record["hub"] = {"repo_id": self.repo_id, "revision": self.revision, "commit": done.oid}
        print(f"pushed to {self.url}", flush=True)

    def _push_staged(self, staged: Path, name: str, title: str) -> None:
        """One commit, so that a repository never holds parts of two checkpoints; a failure costs a line, no more."""
        try:
            with hub_errors(self.repo_id):
                paths = {str(file.relative_to(staged)): file for file in staged.rglob("*") if file.is_file()}
                stale = [file for file in self.files() if file.startswith(f"{name}/") and file not in paths]
                operations: list[CommitOperationAdd | CommitOperationDelete] = [*map(CommitOperationDelete, stale)]
                operations += [CommitOperationAdd(path_in_repo=path, path_or_fileobj=paths[path]) for path in paths]
                self.api.create_commit(self.repo_id, operations, commit_message=title, revision=self.revision)
        except ValueError as error:
            print(f"warning: {title} was not pushed: {error}", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(staged)

    def _commit_id(self) -> str | None:
        return self.api.model_info(self.repo_id, revision=self.revision).sha

    def _checkpoints(self) -> dict[str, int]:
        """Folders of the repository that hold a checkpoint, with their steps."""
        states = [file for file in self.files() if re.fullmatch(rf"({LAST}|checkpoint-\d+)/trainer_state\.json", file)]
        steps = {}
        for state in states:
            path = self.api.hf_hub_download(self.repo_id, state, revision=self._commit_id())
            steps[state.split("/")[0]] = _json(path)["global_step"]
        return steps


def _json(path: str) -> dict:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"its {Path(path).name} is not JSON ({error}); choose another repository") from None


def open_hub(settings: HubSettings, folder: Path, metadata: str) -> Hub:
    """Makes sure before training that the run can be pushed: repository and branch are made where they are missing.

    Args:
        folder: the run's; its name is the repository's where hub_model_id is missing.
        metadata: the model card's, as YAML: the Hub refuses commits with a wrong one, such as an unknown license.
    Raises:
        ValueError: of one line: offline, unreachable, no token, no permission, another license, a public repository
            where a private one is asked for.
    """
    name = settings.model_id or folder.resolve().name
    with hub_errors(name):
        if is_offline_mode():
            raise OfflineModeIsEnabled
        api = HfApi(library_name="fourstage")
        user = api.whoami()["name"]
        repo_id = api.create_repo(
            name if "/" in name else f"{user}/{name}", private=settings.private, exist_ok=True
        ).repo_id
        api.auth_check(repo_id, write=True)
        if settings.private and not api.model_info(repo_id).private:
            raise ValueError(
                "it is public, hub_private_repo asks for a private one; make it private, or choose another"
            )
        ModelCard(f"---\n{metadata}\n---\n", ignore_metadata_errors=True).validate()
        hub = Hub(api, repo_id, settings.revision or "main", settings.strategy)
        _make_branch(hub)
    disable_progress_bars()
    remove_staged(folder)
    return hub


def _make_branch(hub: Hub) -> None:
    """A new branch begins at the first commit, which is empty: main may hold another stage."""
    if hub.revision not in {branch.name for branch in hub.api.list_repo_refs(hub.repo_id).branches}:
        first = hub.api.list_repo_commits(hub.repo_id)[-1].commit_id
        hub.api.create_branch(hub.repo_id, branch=hub.revision, revision=first, exist_ok=True)


@contextmanager
def hub_errors(name: str) -> Generator[None]:
    """Within it, what the client raises, of a dozen types, is a ValueError of one line that names the fix."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"hub_model_id={name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on (HF_HUB_OFFLINE); unset it, or leave --push_to_hub out and push later"
    if isinstance(error, LocalTokenNotFoundError):
        return "no token on this machine; run `hf auth login` or set HF_TOKEN"
    if status == 401:
        return "the Hub does not know the token (401); run `hf auth login` or set HF_TOKEN"
    if status == 403:
        return "the token may not write there (403); take one with write access, or another --hub_model_id OWNER/NAME"
    if any(kind.__name__ == "TransportError" for kind in type(error).__mro__):  # of the HTTP library, whichever it is
        return f"the Hub ({constants.ENDPOINT}) cannot be reached ({type(error).__name__}); check the network"
    text = one_line(error, longest=300)
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"

"""`fourstage push`: uploads a stage that was finished earlier."""

from pathlib import Path

from fourstage.artifact import push_run, refuse_another_run
from fourstage.card import card_data
from fourstage.checkpoint import read_record
from fourstage.hub import HubSettings, open_hub


def push_folder(folder: Path, settings: HubSettings) -> None:
    """Uploads the folder to the repository of `settings`; by default to where it went, or was to go, before.

    Raises:
        ValueError: of one line, if the folder holds no finished stage or the repository another run, and if the Hub
            does not take it.
    """
    record = read_record(str(folder.resolve()))
    if record is None or record["status"] != "finished":
        way = f"finish it with: {record['command']}" if record else "give the folder that a recipe finished"
        raise ValueError(f"{folder} holds no finished stage; {way}")
    before, given = record.get("hub") or {}, record["arguments"]["training"]
    settings.model_id = settings.model_id or before.get("repo_id") or given.get("hub_model_id")
    settings.revision = settings.revision or before.get("revision") or given.get("hub_revision")
    hub = open_hub(settings, folder, card_data(record).to_yaml())
    if there := hub.record():
        refuse_another_run(hub, there, record)
    push_run(folder, record, hub)

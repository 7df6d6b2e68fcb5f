"""The hub, with the real huggingface_hub against a local server, without a network."""

import logging
import sys

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.file_download
import huggingface_hub.utils
import pytest
import torch

from pupujepa.errors import UserError
from pupujepa.weights.hub import HubId, parse_hub_id
from pupujepa.weights.weights import WeightsError, load
from tests.pupujepa.local_hub import LocalHub, serving
from tests.pupujepa.models import SMALL
from tests.pupujepa.released import NAMINGS, release

OLD, NEW = "a" * 40, "b" * 40
REPOSITORY = "band/weights"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Two commits of one repository with both namings; main is at the old one. A fresh cache."""
    commits = {}
    for commit, step in ((OLD, 1000), (NEW, 2000)):
        for naming in NAMINGS:
            release(tmp_path / commit / f"{naming}_tiny", steps=(step,))
        commits[commit] = tmp_path / commit
    (tmp_path / NEW / "README.md").write_text("a large file that nobody asked for")
    hub = LocalHub({REPOSITORY: commits}, {REPOSITORY: {"main": OLD, "v2": NEW}})
    with serving(hub) as url:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        # 10 s by default, after which it asks again: a busy machine may need them
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 300)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 300)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # releases before 1.0 keep the one that they were imported with
        monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        forget_sessions()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def forget_sessions() -> None:
    """Resets sessions: releases before 1.0 keep one per thread, with the online state at its opening."""
    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


def first_weight(model) -> torch.Tensor:
    return model.student.blocks[0].attn.qkv.weight


def weights_of(tmp_path, commit: str) -> torch.Tensor:
    return first_weight(load(tmp_path / commit / f"{NAMINGS[0]}_tiny"))


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("pin", ["@", "revision"])
def test_a_pinned_commit_is_read_whatever_main_does(hub, tmp_path, caplog, naming, pin):
    """owner/repository/folder at a commit loads that commit's model without a log line and fetches only its files."""
    hub.branches[REPOSITORY]["main"] = NEW
    name = f"{REPOSITORY}/{naming}_tiny"
    model = load(f"{name}@{OLD}") if pin == "@" else load(name, revision=OLD)
    assert model.config == SMALL
    assert torch.equal(first_weight(model), weights_of(tmp_path, OLD))
    assert sorted(path.split("/", 5)[-1] for path in hub.downloads) == [
        f"{naming}_tiny/args.json",
        f"{naming}_tiny/checkpoint/step-0001000_loss-0.177000/model.safetensors",
    ]
    assert "can move" not in caplog.text


def test_an_unpinned_id_is_resolved_to_one_commit_and_told(hub, tmp_path, caplog):
    """Without a revision main is read, and the log gives the id that pins the commit; a tag is not a pin either."""
    name = f"{REPOSITORY}/{NAMINGS[0]}_tiny"
    with caplog.at_level(logging.WARNING, logger="pupujepa.weights.hub"):
        unpinned = load(name)
        tagged = load(name, revision="v2")
    assert torch.equal(first_weight(unpinned), weights_of(tmp_path, OLD))
    assert torch.equal(first_weight(tagged), weights_of(tmp_path, NEW))
    told = [record.message for record in caplog.records if record.name == "pupujepa.weights.hub"]
    assert told == [
        f"{name}@main can move; load {name}@{OLD} to get the same weights again",
        f"{name}@v2 can move; load {name}@{NEW} to get the same weights again",
    ]
    hub.branches[REPOSITORY]["main"] = NEW
    assert torch.equal(first_weight(load(f"{name}@{OLD}")), first_weight(unpinned))
    assert torch.equal(first_weight(load(name)), weights_of(tmp_path, NEW))


def test_what_was_fetched_once_is_read_offline(hub, monkeypatch):
    """Offline, the cache serves the pinned commit, and another one is an error."""
    name = f"{REPOSITORY}/{NAMINGS[0]}_tiny"
    online = load(f"{name}@{OLD}")
    fetched = len(hub.downloads)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    forget_sessions()
    assert torch.equal(first_weight(load(f"{name}@{OLD}")), first_weight(online))
    with pytest.raises(WeightsError, match=f"the hub does not give {name}@{NEW} either"):
        load(f"{name}@{NEW}")
    assert len(hub.downloads) == fetched


def test_a_repository_without_weights_at_its_root_lists_its_folders(hub):
    """For the root or a misspelt folder of a repository with a folder per size, the error lists the folders."""
    listed = ", ".join(sorted(f"{naming}_tiny" for naming in NAMINGS))
    for folder in ("", "/pupujepaV2_25hz_tinny"):
        with pytest.raises(WeightsError, match=rf"holds no args\.json.*its folders that hold one: {listed}"):
            load(f"{REPOSITORY}{folder}@{OLD}")


def test_what_the_hub_refuses_is_one_error(hub):
    """An unknown repository, an unknown revision and an impossible name are errors that name the request."""
    with pytest.raises(WeightsError, match="the hub does not give nobody/nothing@main either"):
        load("nobody/nothing")
    with pytest.raises(WeightsError, match=f"the hub does not give {REPOSITORY}@v9 either"):
        load(f"{REPOSITORY}@v9")
    with pytest.raises(WeightsError, match=r"the hub does not give --/\.\.@main either"):
        load("--/..")


def test_without_the_extra_the_remedy_is_named(monkeypatch):
    """huggingface_hub is optional: without it, a hub id is an error that names the extra."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"needs huggingface_hub: pip install 'pupujepa\[hub\]'"):
        load("owner/weights")


def test_hub_ids_are_parsed():
    """Folder and revision are optional; other paths give None; two different revisions are an error."""
    assert parse_hub_id("a/b") == HubId("a/b", "", "main")
    assert parse_hub_id("a/b/c/d@v1.0/x") == HubId("a/b", "c/d", "v1.0/x")
    assert str(parse_hub_id("a/b/c", revision="v1")) == "a/b/c@v1"
    with pytest.raises(UserError, match=r"names the file '\.\./\.\.', which is not a plain relative path"):
        parse_hub_id("a/b/../..")
    for text in ("a", "/a/b", "a/b@", "a b/c", "~/a/b", "a/b/"):
        assert parse_hub_id(text) is None
    with pytest.raises(WeightsError, match="names one revision and revision='v2' another"):
        parse_hub_id("a/b@v1", revision="v2")

"""Plans on the hub, against a local stand-in of its file layout; nothing here goes to the network."""

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from support.small import generate
from support.statistics import STEPS as T
from support.statistics import random_statistics

import forecache as fc
from forecache.plan import hub as hub_module

REPO, COMMIT = "somebody/goc-50", "0" * 40


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A folder as huggingface_hub caches repositories, offline; what is uploaded lands in it."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    download = huggingface_hub.hf_hub_download
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: download(*a, **k, cache_dir=cache))
    made = []

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo, private=None, exist_ok=False):
            assert exist_ok
            made.append((repo, private, self.token))

        def upload_folder(self, repo_id, folder_path, commit_message):
            assert made[-1][0] == repo_id
            place = cache / f"models--{repo_id.replace('/', '--')}"
            (place / "refs").mkdir(parents=True, exist_ok=True)
            (place / "refs" / "main").write_text(COMMIT)
            shutil.copytree(folder_path, place / "snapshots" / COMMIT, dirs_exist_ok=True)
            return f"https://huggingface.co/{repo_id}/commit/{COMMIT}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return cache, made


def plan(model, method=None):
    return (method or fc.goc(fc.fora(2), 0.8)).plan(fc.grid(model, T))


def test_a_plan_goes_to_the_hub_and_comes_back(dit, hub):
    cache, made = hub
    pushed = plan(dit)
    address = pushed.push_to_hub(REPO, cost=pushed.cost(dit), private=True, token="secret")
    assert address.endswith(COMMIT)
    assert made == [(REPO, True, "secret")]
    assert fc.Plan.from_pretrained(REPO) == pushed
    text = (cache / "models--somebody--goc-50/snapshots" / COMMIT / "README.md").read_text()
    assert pushed.show() in text
    assert str(pushed.cost(dit)) in text
    assert "| method | `goc(fora(interval=2), eta=0.8)` |" in text
    assert "secret" not in text
    assert re.match(r"---\nlibrary_name: forecache\n", text)


def test_the_code_of_the_card_runs(dit, hub):
    pushed = plan(dit)
    pushed.push_to_hub(REPO)
    snapshot = hub[0] / "models--somebody--goc-50/snapshots" / COMMIT
    code = re.search(r"```python\n(.*?)```", (snapshot / "README.md").read_text(), re.S)[1]
    made = {}
    exec(code.split("with fc.apply")[0], made)
    assert made["plan"] == pushed


def test_constants_come_with_the_plan(dit, hub):
    pushed = plan(dit, fc.eoc(fc.fora(3), random_statistics(dit), 0.1, judge="all"))
    pushed.push_to_hub(REPO)
    found = fc.Plan.from_pretrained(REPO)
    assert found == pushed
    with fc.apply(dit, pushed):
        expected = generate(dit, T)
    with fc.apply(dit, found):
        assert torch.equal(generate(dit, T), expected)


def test_a_folder_is_read_as_it_is(dit, tmp_path):
    saved = plan(dit)
    saved.save(tmp_path / "plan.json")
    assert fc.Plan.from_pretrained(str(tmp_path)) == saved


@pytest.mark.parametrize("text", ["{", "[]", "1", '{"constants": 3}', "[" * 100_000])
def test_what_is_no_plan_is_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(fc.errors.PlanFileError, match="is not a readable plan file"):
        fc.Plan.from_pretrained(str(tmp_path))


def test_a_file_elsewhere_is_not_fetched(dit, tmp_path):
    """Constants lie beside the plan, whatever it says."""
    asked = []

    def get(name):
        asked.append(name)
        return tmp_path / name

    plan(dit, fc.eoc(fc.fora(3), random_statistics(dit), 0.1, judge="all")).save(tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    document["constants"]["file"] = "../../secret"
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(fc.errors.PlanFileError):
        hub_module.fetched("x/y", get)
    assert asked == ["plan.json"]


def test_offline_and_not_there_is_an_error_that_says_so(hub):
    with pytest.raises(
        fc.errors.PlanFileError, match=r"plan.json of nobody/nothing cannot be fetched.*HF_HUB_OFFLINE is set"
    ):
        fc.Plan.from_pretrained("nobody/nothing")
    assert not Path("nobody").exists()

"""Plans on the Hugging Face hub: a repository with plan.json, its constants, and a model card of the plan."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forecache.errors import MissingExtraError, PlanFileError
from forecache.io import files
from forecache.parts.grid import Grid
from forecache.plan import file

FILE = "plan.json"
Get = Callable[[str], Path]


def fetched(repo: str, get: Get) -> Path:
    """The plan file of a repository, with the file of its constants beside it.

    get: name of a file -> its path on this machine
    """
    path = get(FILE)
    if (beside := file.read(path).constants) is not None:
        get(beside.file)
    return path


def downloads(repo: str, revision: str | None, token: str | bool | None) -> Get:
    """A function that fetches files of a repository, or of a folder; it raises PlanFileError for a missing one."""
    if Path(repo).is_dir():
        return lambda name: Path(repo) / name
    hub = _hub()

    def get(name: str) -> Path:
        try:
            return Path(hub.hf_hub_download(repo, name, revision=revision, token=token))
        except Exception as error:  # the hub fails in many ways; the reason is kept
            raise _unreachable(name, repo, error) from error

    return get


def folder(repo: str) -> Path:
    """The folder on this machine with the plan files of a repository, ``owner/name``, and their constants.

    Only small files are fetched: JSON at the top, and constants of plans. Raises PlanFileError where that fails.
    """
    hub = _hub()
    try:
        patterns = ["*.json", "*.constants.safetensors"]
        return Path(hub.snapshot_download(repo, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except Exception as error:  # the hub fails in many ways; the reason is kept
        raise _unreachable("The plans", repo, error) from error


def _unreachable(what: str, repo: str, error: Exception) -> PlanFileError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return PlanFileError(f"{what} of {repo} cannot be fetched from the hub{offline}: {reason}")


def push(
    repo: str, save: Callable[[Path], None], card: str, private: bool | None = None, token: str | bool | None = None
) -> str:
    """Upload of a plan with its constants and a card as one commit; returns the address of the commit.

    repo: ``owner/name``, created if it does not exist
    save: writes the plan file to a path
    card: the model card, in Markdown
    private: visibility of a new repository; None for the account's default
    token: of the hub; None for the one that is logged in
    """
    api = _hub().HfApi(token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / FILE)
        files.write(Path(folder) / "README.md", card)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a forecache plan")
    return str(commit)


def card(repo: str, grid: Grid, share: float, picture: str, provenance: Mapping[str, str], cost: str = "") -> str:
    """The model card of a plan, in Markdown: picture, cost, provenance, and how to use it.

    share: computed share of the cells, 0 to 1
    picture: the plan as text
    cost: the plan's cost as text, empty where it is not given
    """
    rows = {"model": grid.model, "fingerprint": grid.fingerprint, "scheduler": grid.scheduler, **provenance}
    table = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value]
    costs = ["## Cost", "", f"{cost}.", ""] if cost else []
    return "\n".join(
        [
            *("---", "library_name: forecache", "tags:", "- forecache", "- diffusion", "- caching", "---", ""),
            f"# A plan for {grid.model or 'a diffusion transformer'}, {grid.num_steps} steps",
            "",
            f"{share:.1%} of the features of {len(grid.sites)} sites are computed, the others forecast.",
            "",
            *("```python", "import forecache as fc", "", f'plan = fc.Plan.from_pretrained("{repo}")'),
            *("with fc.apply(pipe, plan):", f"    images = pipe(..., num_inference_steps={grid.num_steps}).images"),
            *("```", "", "## Schedule", "", "```", picture, "```", ""),
            *costs,
            *("## Origin", "", "| | |", "|---|---|", *table, ""),
        ]
    )


def _cell(value: str) -> str:
    return "`" + value.replace("\n", " ").replace("|", "\\|").replace("`", "'") + "`"


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "diffusers", "The hub") from error
    return huggingface_hub

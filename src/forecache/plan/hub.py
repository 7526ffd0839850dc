"""Plans on the Hugging Face hub: a repository with plan.json, its constants, and a card that was made from them."""

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
    """The plan file of a repository, with the file of its constants beside it. get: a file of it by its name."""
    path = get(FILE)
    if (beside := file.read(path).constants) is not None:
        get(beside.file)
    return path


def downloads(repo: str, revision: str | None, token: str | bool | None) -> Get:
    """Gets files of a repository on the hub, or of a folder; PlanFileError where one is not there."""
    if Path(repo).is_dir():
        return lambda name: Path(repo) / name
    hub = _hub()

    def get(name: str) -> Path:
        try:
            return Path(hub.hf_hub_download(repo, name, revision=revision, token=token))
        except Exception as error:  # the hub fails in many ways; the reason is kept
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
            raise PlanFileError(f"{name} of {repo} cannot be fetched from the hub{offline}: {reason}") from error

    return get


def push(
    repo: str, save: Callable[[Path], None], card: str, private: bool | None = None, token: str | bool | None = None
) -> str:
    """Upload of a plan with its constants and a card as one commit; gives its address. save: writes the plan file."""
    api = _hub().HfApi(token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / FILE)
        files.write(Path(folder) / "README.md", card)
        made = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a forecache plan")
    return str(made)


def card(repo: str, grid: Grid, share: float, picture: str, provenance: Mapping[str, str], cost: str = "") -> str:
    """The model card of a plan, in Markdown: picture, cost, provenance, and how to use it. share: of cells computed."""
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
            *("## Where it came from", "", "| | |", "|---|---|", *table, ""),
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

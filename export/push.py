"""Uploading a bundle to the hub, after every file of it was verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tel_edge.eval.folders import hub_card
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.bundles.manifest import Manifest
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import need


def check(repository: str) -> Any:
    """Return the hub's client; raise `InputError` for a name that is no repository."""
    hub = need("huggingface_hub", "train")
    # What lies in the package is loaded when it is named, and not through the package.
    utils = need("huggingface_hub.utils", "train")
    try:
        utils.validate_repo_id(repository)
    except ValueError as error:
        raise InputError(f"--push: {error}") from None
    if repository.count("/") != 1:
        raise InputError(f"--push: {repository!r} is no repository; owner/name is needed")
    return hub


def push(folder: Path, made: Manifest, repository: str) -> str:
    """Upload the files of the manifest, it and the card; return the address of the commit.

    What else lies in the folder stays there. Raises `InputError` for a damaged file or a name that
    is no repository, `WorkError` with what the hub said.
    """
    hub = check(repository)
    bundle.verify(folder, made, made.files)
    api = hub.HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[manifest.NAME, hub_card.NAME, *(file.path for file in made.files)],
            commit_message=f"tel-export: {made.backbone.name}, {len(made.files)} files",
        )
    except Exception as error:
        # The hub's client raises a dozen kinds; its first line says what happened.
        reason = str(error).strip().split("\n")[0][:200]
        raise WorkError(f"{repository}: the hub refused ({reason}); see `hf auth login`") from error
    return str(done)

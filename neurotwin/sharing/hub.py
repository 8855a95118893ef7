"""Twins on the Hugging Face hub: one repository a twin, one tag a revision."""

from pathlib import Path
from typing import Any

from .bundle import CARD, GOLDEN, MANIFEST, TWIN, SharingError, read_bundle

__all__ = ["HUB", "pull_from_hub", "push_to_hub"]

HUB = "hub"
"""What stands for the hub where a folder is asked for."""
_FILES = [TWIN, GOLDEN, CARD, MANIFEST]


def push_to_hub(folder: Path, name: str, revision: str, content: str, api: Any = None) -> None:
    """Upload a packed twin as one commit, and give it a tag.

    Parameters
    ----------
    folder
        The packed twin.
    name
        OWNER/NAME.
    revision
        The tag, which must be free.
    content
        SHA-256 of the content, for the commit's message.
    api
        What is asked in place of `huggingface_hub.HfApi()`.

    Raises
    ------
    SharingError
        If the package is absent, or the repository has such a tag: a revision is never changed.
    """
    api = _api(api)
    api.create_repo(name, exist_ok=True)
    if revision in _tags(api, name):
        raise SharingError(f"{name}@{revision}: is on the hub already, and a revision is never changed; choose another")
    commit = api.upload_folder(
        repo_id=name, folder_path=str(folder), commit_message=f"{revision}: {content}", allow_patterns=_FILES
    )
    api.create_tag(name, tag=revision, revision=commit.oid)


def pull_from_hub(name: str, revision: str, folder: Path, api: Any = None) -> str:
    """Download the files of a twin, and no others, into a folder and compare their checksums.

    Returns
    -------
    str
        The pinned revision: the tag, or the commit that "latest" stands for.

    Raises
    ------
    SharingError
        If the package is absent, or the files are not those that were pushed.
    """
    api = _api(api)
    if revision == "latest":
        revision = api.repo_info(name).sha
    api.snapshot_download(repo_id=name, revision=revision, local_dir=str(folder), allow_patterns=_FILES)
    read_bundle(folder)
    return revision


def _tags(api: Any, name: str) -> set[str]:
    return {tag.name for tag in api.list_repo_refs(name).tags}


def _api(api: Any) -> Any:
    if api is not None:
        return api
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise SharingError("the Hugging Face hub needs the extra: pip install 'neurotwin[hub]'") from None
    return HfApi()

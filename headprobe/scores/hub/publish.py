"""Send a parcel to the hub: one commit, on top of the one that was looked at."""

from __future__ import annotations

import warnings
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from headprobe.errors import FileAccessError
from headprobe.scores.hub.parcel import Parcel
from headprobe.scores.hub.remote import unreachable

DATASET = "dataset"


def publish(parcel: Parcel, message: str, private: bool = False) -> str:
    """Commit the changes of `parcel` and return the commit's hash; makes the repository where there is none.

    Somebody else's commit in between makes it fail instead of being overwritten. Raises `FileAccessError` when the
    hub cannot be reached or refuses.
    """
    api, repo_id = HfApi(library_name="headprobe"), parcel.repo_id
    operations = [CommitOperationAdd(upload.name, upload.data) for upload in parcel.changes]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if parcel.parent is None:
                api.create_repo(repo_id, repo_type=DATASET, private=private, exist_ok=False)
            done = api.create_commit(
                repo_id, operations, commit_message=message, repo_type=DATASET, parent_commit=parcel.parent
            )
    except Exception as error:
        raise FileAccessError(f"nothing was pushed to {repo_id}: {_refusal(error)}") from error
    return str(done.oid)


def _refusal(error: Exception) -> str:
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is None:
        return unreachable(error)
    reasons = {
        401: "the hub does not know you (`hf auth login`, or HF_TOKEN)",
        403: "your token may not write there (it needs the right to write, and the name must be yours)",
        404: "there is no such repository, or your token may not see it",
        409: "the repository is there already, but your token may not see it",
        412: "somebody else pushed meanwhile; push again",
    }
    told = " ".join(str(getattr(error, "server_message", None) or error).split())
    return reasons.get(int(status), f"the hub answered {status}: {told[:160]}")

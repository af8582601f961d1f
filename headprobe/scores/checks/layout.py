"""Whether a file says which head is meant, and holds all of them."""

from __future__ import annotations

from headprobe.scores.checks.finding import ERROR, INFO, WARNING, Check, Seen, Suspect, note


def keys_out_of_order(suspect: Suspect) -> Seen:
    """The keys of a JSON object are not in layer, head order."""
    detail = note(suspect, "keys-out-of-order")
    return None if detail is None else (ERROR, detail)


def unequal_trials(suspect: Suspect) -> Seen:
    """Heads, or the list of ids, have another number of trials."""
    detail = note(suspect, "unequal-trials")
    return None if detail is None else (ERROR, detail)


def wrong_shape(suspect: Suspect) -> Seen:
    """Layers and heads are not those of the model that is stated."""
    scores, geometry = suspect.scores, suspect.geometry
    if geometry is None:
        return None
    is_kv = scores.heads == "kv"
    due = geometry.num_hidden_layers, geometry.num_key_value_heads if is_kv else geometry.num_attention_heads
    found = scores.mean.shape
    if found == due or (scores.is_ranking and found[0] <= due[0] and found[1] <= due[1]):
        return None
    told = f"{found[0]} x {found[1]} {'KV' if is_kv else 'query'} heads"
    return ERROR, f"{told}, {suspect.model} (stated by {suspect.source}) has {due[0]} x {due[1]}"


def bad_config(suspect: Suspect) -> Seen:
    """The `config.json` beside a DuoAttention table cannot be used."""
    detail = note(suspect, "bad-config")
    return None if detail is None else (WARNING, detail)


def ranking_only(suspect: Suspect) -> Seen:
    """A ranking without scores."""
    detail = note(suspect, "ranking-only")
    return None if detail is None else (INFO, detail.partition(";")[0])


def no_provenance(suspect: Suspect) -> Seen:
    """The file does not say where it comes from."""
    scores = suspect.scores
    if scores.native is None:
        missing = [name for name, value in (("model", scores.model), ("method", scores.method)) if value is None]
        return INFO, f"the file does not tell {', '.join([*missing, 'probes', 'versions'])}"
    model = scores.native.provenance.model
    if model.revision is None and model.config_sha256 is None:
        return INFO, "neither the model's revision nor the sha256 of its config is stated"
    return None


LAYOUT_CHECKS = (
    Check("keys-out-of-order", "loaders that trust the keys' order give heads the scores of others", keys_out_of_order),
    Check("unequal-trials", "means over different trials cannot be compared, or scores were cut off", unequal_trials),
    Check("wrong-shape", "the scores belong to another model, or heads are missing", wrong_shape),
    Check("bad-config", "the model and the window sizes that belong to the table are unknown", bad_config),
    Check("ranking-only", "it can be compared by rank, but budgets need scores", ranking_only),
    Check("no-provenance", "nobody can measure the scores again or tell what they stand for", no_provenance),
)

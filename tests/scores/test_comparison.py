from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.comparison import aligned, compare, moved_heads, overlaps
from headprobe.scores.score_file import write_score_file


@pytest.fixture
def file_of(tmp_path):
    """Scores in memory, as if read from a file `name`."""

    def make(name, mean, **changes):
        fields = dict.fromkeys(("trial_scores", "native", "geometry", "method", "model"))
        whole = {"heads": "query", "is_ranking": False, "notes": (), "sha256": name, "format": "headkv"} | fields
        return AnyScores(path=tmp_path / name, mean=np.array(mean, dtype=float), **(whole | changes))

    return make


def test_keyed_files_are_compared_head_by_head(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    # trials a row; the second file keeps the order of its mean, but for the last two heads
    first.write_text(json.dumps({"0-0": [0.9, 0.7], "0-1": [0.5, 0.5], "1-0": [0.2, 0.2], "1-1": [0.0, 0.2]}))
    second.write_text(json.dumps({"0-0": [0.4, 0.6], "0-1": [0.4, 0.2], "1-0": [0.0, 0.0], "1-1": [0.1, 0.1]}))
    found = compare(read_any(first), read_any(second))
    assert found.heads == "query"
    assert found.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert [(o.k, o.shared) for o in found.overlaps] == [(3, 2.0)]
    assert {(m.layer, m.head, m.first_rank, m.second_rank) for m in found.moved} == {(1, 0, 3, 4), (1, 1, 4, 3)}


def test_query_heads_meet_kv_heads_through_their_groups(file_of):
    query = file_of("query.json", [[0.0, 0.4, 0.6, 0.6], [1.0, 0.0, 0.1, 0.1]])
    kv = file_of("kv.tsv", [[0.1, 0.9], [0.5, 0.2]], heads="kv")
    by_mean, by_best = compare(query, kv), compare(kv, query, how="max")
    assert by_mean.heads == by_best.heads == "kv"
    assert by_mean.first.tolist() == [[0.2, 0.6], [0.5, 0.1]]
    assert by_best.second.tolist() == [[0.4, 0.6], [1.0, 0.1]]
    assert by_mean.notes[0] == "query.json: 4 query heads as 2 KV heads, each the mean of its query heads"
    assert "query.json: 4 query heads as 2 KV heads, each its best query head" in by_best.notes


def test_a_ranking_takes_the_other_files_shape_and_its_best_query_head(file_of):
    ranking = file_of("ranking.yaml", [[0.0, 0.0, 2.0], [0.0, 1.0, 0.0]], is_ranking=True)
    query = file_of("query.json", np.arange(12.0).reshape(3, 4) / 12)
    kv = file_of("kv.tsv", np.arange(6.0).reshape(3, 2) / 6, heads="kv")
    assert aligned(ranking, query)[0].table.tolist() == [[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert aligned(kv, ranking)[1].table.tolist() == [[0, 2], [1, 0], [0, 0]]
    found = compare(query, ranking)
    assert [o.k for o in found.overlaps] == [2]
    assert "ranking.yaml: a ranking of 2 heads without scores; all other heads are tied behind them" in found.notes


@pytest.mark.parametrize(
    ("shape", "changes", "told"),
    [
        ((2, 8), {}, "a.json has 2 layers of 4 query heads, b.json has 2 layers of 8 query heads"),
        ((3, 4), {}, "b.json has 3 layers of 4 query heads"),
        ((2, 3), {"heads": "kv"}, "b.json has 2 layers of 3 KV heads"),
        ((2, 8), {"heads": "kv"}, "b.json has 2 layers of 8 KV heads"),
    ],
)
def test_another_geometry_is_refused(file_of, shape, changes, told):
    with pytest.raises(OptionError, match=told):
        compare(file_of("a.json", np.ones((2, 4))), file_of("b.json", np.ones(shape), **changes))


def test_a_kv_file_that_contradicts_the_models_groups_is_refused(tmp_path, toy_scores, file_of):
    native = read_any(write_score_file(tmp_path / "toy.json", toy_scores))
    message = r"toy.json has 2 layers of 4 query heads \(sharing 2 KV heads\), kv.tsv has 2 layers of 4 KV heads"
    with pytest.raises(OptionError, match=message):
        compare(native, file_of("kv.tsv", np.ones((2, 4)), heads="kv"))


def test_agreement_that_noise_allows_is_told_where_both_have_trials(make_scores, tmp_path, file_of):
    rng = np.random.default_rng(0)
    true = rng.random((4, 10))
    files = []
    for name in ("a", "b"):
        made = make_scores(list(true + 0.5 * rng.standard_normal((30, 4, 10))), [True] * 30)
        scores = replace(made, trials=tuple(replace(trial, depth=0.0) for trial in made.trials))
        files.append(read_any(write_score_file(tmp_path / f"{name}.json", scores)))
    found = compare(*files)
    assert found.attainable == pytest.approx(found.spearman, abs=0.06)
    assert found.low < found.spearman < found.high
    assert compare(files[0], file_of("bare", true)).attainable is None


def test_tops_end_where_scores_do():
    a, b = np.zeros((4, 10)), np.linspace(1, 0.1, 40).reshape(4, 10)
    a.ravel()[:7] = 1 - np.arange(7) / 10
    assert [(o.k, o.shared, o.by_chance) for o in overlaps(a, b)] == [(7, 7.0, 49 / 40)]
    assert [o.k for o in overlaps(b, b)] == [10, 20]
    assert overlaps(np.zeros((2, 2)), np.ones((2, 2))) == ()
    with pytest.raises(OptionError, match="the tops are 0, 5, need at least 1"):
        overlaps(a, b, (0, 5))


def test_a_move_near_the_top_counts_for_more():
    a = np.linspace(1, 0.1, 60)
    b = a.copy()
    b[[1, 19]], b[[30, 48]] = a[[19, 1]], a[[48, 30]]
    moved = moved_heads(a.reshape(6, 10), b.reshape(6, 10), 4)
    told = [(m.layer * 10 + m.head, m.first_rank, m.second_rank) for m in moved]
    assert sorted(told[:2]) == [(1, 2, 20), (19, 20, 2)]
    assert sorted(told[2:]) == [(30, 31, 49), (48, 49, 31)]


def test_heads_low_on_both_sides_do_not_count_as_moved():
    a = np.linspace(1, 0.1, 200)
    b = np.concatenate([a[:60], a[60:][::-1]])
    assert moved_heads(a.reshape(2, 100), b.reshape(2, 100)) == ()


def test_files_of_other_models_ties_and_twins_are_pointed_out(file_of):
    first = file_of("a", [[1.0, 1.0, 0.5]], model="llama")
    notes = compare(first, replace(first, model="mistral")).notes
    assert "the files name different models: llama and mistral" in notes
    assert "both files hold the same scores" in notes
    assert "a: 2 heads share the highest score; a top that cuts ties counts parts of heads" in notes


def test_a_file_of_equal_scores_has_no_correlation(file_of):
    found = compare(file_of("a", np.zeros((2, 3))), file_of("b", np.arange(6.0).reshape(2, 3)))
    assert (found.spearman, found.low, found.high, found.overlaps) == (None, None, None, ())


def test_bad_options_are_quoted(file_of):
    file = file_of("a", np.ones((2, 3)))
    with pytest.raises(OptionError, match="joined by 'mean' or 'max', not 'sum'"):
        compare(file, file, how="sum")
    with pytest.raises(OptionError, match="num_moved is -1"):
        compare(file, file, num_moved=-1)

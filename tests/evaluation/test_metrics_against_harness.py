"""LongBench's metrics against the functions of lm-evaluation-harness, on random pairs. Needs the extras.

`pip install lm-eval jieba fuzzywuzzy rouge` brings what they take.
"""

from __future__ import annotations

import warnings
from random import Random
from typing import Any

import pytest

from headprobe.evaluation.metrics import METRICS

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'headprobe[harness]'")
for package in ("jieba", "fuzzywuzzy", "rouge"):
    pytest.importorskip(package, reason=f"{package}, which the harness's LongBench needs, is not installed")

THEIRS = {
    "qa_f1": "get_qa_f1_score",
    "qa_f1_zh": "get_qa_f1_zh_score",
    "rouge_l": "get_rouge_score",
    "rouge_zh": "get_rouge_zh_score",
    "classification": "get_classification_score",
    "count": "get_count_score",
    "retrieval": "get_retrieval_score",
    "retrieval_zh": "get_retrieval_zh_score",
    "code_sim": "get_code_sim_score",
}
WORDS = [*"the a an cat cats sat on. mat, Town-hall 3 12 12 3. yes no 'quoted' x.y ... # // `code`".split(), "\n", "  "]
CHINESE = [*"我们在北京大学学习中文，天气很好。小明喜欢苹果和香蕉！他说：你好", "段落3", "段落12", "3", "12", "\n"]
CLASSES = ("Other", "Other location", "location", "Animal", "Animal, wild", "wild", "12", "3", "cat", "the")


@pytest.fixture(scope="module")
def theirs() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that are years old
        from lm_eval.tasks.longbench import metrics

        metrics.jieba.initialize()
    return metrics


def text(random: Random, metric: str) -> str:
    if metric == "classification":
        return " ".join(random.choices([*CLASSES, "or", "so"], k=random.randint(0, 5)))
    pieces = CHINESE if metric.endswith("_zh") else WORDS
    return ("" if metric.endswith("_zh") else " ").join(random.choices(pieces, k=random.randint(0, 25)))


def answers(random: Random, metric: str) -> list[str]:
    number = str(random.choice([3, 12]))
    fixed = {"count": number, "retrieval": f"Paragraph {number}", "retrieval_zh": f"段落{number}"}
    if metric in fixed:
        return [fixed[metric]]
    if metric == "classification":
        return [random.choice(CLASSES)]
    found = [text(random, metric) for _ in range(random.randint(1, 3))]
    return [each for each in found if each.strip()] or ["cat"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("metric", THEIRS)
def test_a_metric_of_longbench_is_that_of_the_harness(theirs: Any, metric: str) -> None:
    random = Random(metric)
    for _ in range(400):
        response, right = text(random, metric), answers(random, metric)
        (due,) = getattr(theirs, THEIRS[metric])({"answers": right, "all_classes": list(CLASSES)}, [response]).values()
        said = response if metric == "code_sim" else response.strip()
        assert METRICS[metric].score(said, right, CLASSES) == pytest.approx(due, abs=1e-9), (response, right)

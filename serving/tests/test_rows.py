import numpy as np
import pytest

from headprobe_vllm.rows import Rows, split_batch

SINKS, WINDOW, BLOCK = 8, 13, 4


def seen_by_kernel(rows: Rows, window: int | None) -> dict[int, list[int]]:
    """For each query of the batch the positions it reads, as a kernel with a causal (sliding) window would."""
    seen = {}
    for row in range(len(rows.lengths)):
        length, first = rows.lengths[row], rows.starts[row]
        count = rows.starts[row + 1] - first
        blocks = np.arange(10**3) if rows.blocks is None else rows.blocks[row]
        positions = [blocks[place // BLOCK] * BLOCK + place % BLOCK for place in range(length)]
        for query in range(count):
            own = length - count + query
            low = 0 if window is None else max(0, own - window + 1)
            seen[int(rows.tokens[first + query])] = sorted(int(p) for p in positions[low : own + 1])
    return seen


def expected(position: int, prompt: int) -> list[int]:
    return [p for p in range(position + 1) if p < SINKS or p >= position - WINDOW or position < prompt]


@pytest.mark.parametrize("seed", range(40))
def test_every_query_sees_sinks_window_and_itself_or_all_of_the_prompt(seed: int) -> None:
    random = np.random.default_rng(seed)
    requests = int(random.integers(1, 6))
    counts = random.integers(1, 30, requests)
    lengths = counts + random.integers(0, 90, requests)
    prompts = random.integers(0, 110, requests)
    starts = np.concatenate([[0], np.cumsum(counts)])
    split = split_batch(starts, lengths, prompts, sinks=SINKS, window=WINDOW, block_size=BLOCK)

    seen = {} if split.dense is None else seen_by_kernel(split.dense, None)
    streaming = {} if split.streaming is None else seen_by_kernel(split.streaming, SINKS + WINDOW + 1)
    assert not set(seen) & set(streaming)
    seen |= streaming
    for request in range(requests):
        for place in range(counts[request]):
            position = lengths[request] - counts[request] + place
            assert seen[starts[request] + place] == expected(position, prompts[request])


def test_rows_read_no_block_between_sinks_and_window() -> None:
    positions = np.arange(200)
    rows = split_batch(np.array([0, 200]), np.array([200]), np.array([0]), sinks=8, window=13, block_size=4).streaming
    assert rows is not None
    assert rows.blocks is not None
    for position, length, blocks in zip(positions, rows.lengths, rows.blocks, strict=True):
        read = {int(b) for b in blocks[: -(-length // 4)]}
        kept = {0, 1} | set(range(max(0, position - 13) // 4, position // 4 + 1))
        assert read <= kept


def test_batch_of_prompts_alone_has_no_streaming_rows() -> None:
    split = split_batch(np.array([0, 5, 9]), np.array([5, 9]), np.array([5, 30]), sinks=8, window=13, block_size=4)
    assert split.streaming is None
    assert split.dense is not None
    assert split.dense.starts.tolist() == [0, 5, 9]
    assert split.dense.longest_query == 5


def test_batch_of_answers_alone_has_no_dense_rows() -> None:
    split = split_batch(np.array([0, 1, 2]), np.array([50, 9]), np.array([49, 3]), sinks=8, window=13, block_size=4)
    assert split.dense is None
    assert split.streaming is not None
    assert split.streaming.requests.tolist() == [0, 1]


def test_no_sinks_leave_the_window_alone() -> None:
    rows = split_batch(np.array([0, 1]), np.array([50]), np.array([0]), sinks=0, window=8, block_size=4).streaming
    assert rows is not None
    assert rows.blocks is not None
    assert rows.blocks.tolist() == [[10, 11, 12]]  # positions 40 to 49, of which a window of 9 sees 41 to 49
    assert rows.lengths.tolist() == [10]

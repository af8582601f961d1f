"""The tokens that a cache has read, by which a prompt that continues them is distinguished from one that does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headprobe.errors import OptionError

RESET = "reset() begins a new conversation"
MIN_ROOM = 64  # tokens: the buffer grows by doubling


def is_capturing(prompt: torch.Tensor) -> bool:
    """Whether `prompt` is given to a step that is being captured as a CUDA graph, in which nothing is computed."""
    return prompt.is_cuda and torch.cuda.is_current_stream_capturing()


class Conversation:
    """What one cache has read `[B, count]`, and the tokens chosen behind it that are yet to be read.

    `count` lags behind the tokens that the cache has seen where some were not seen here (a prompt given as embeddings):
    then the conversation is unknown. Steps replayed from a captured graph are not seen either; who replayed them
    reports what was read (`catch_up`). `passes`: how often the model has read something to the end; `is_torn`: it began
    to and did not end.
    """

    def __init__(self) -> None:
        self.count = self.passes = 0
        self.is_torn = False
        self._reading: tuple[int, torch.Tensor] | None = None
        self._held: torch.Tensor | None = None
        self._chosen: torch.Tensor | None = None

    # -- what is told -----------------------------------------------------------------------------------------------

    def begin(self, prompt: torch.Tensor, seen: int) -> None:
        """A pass begins that reads `prompt`, token ids `[B, T]` or embeddings `[B, T, hidden]`, behind `seen` tokens.

        Told twice of one pass, it counts once. Raises `OptionError` where an earlier pass was torn.
        """
        if is_capturing(prompt):
            return  # nothing is read while a step is captured
        if self._reading is not None and self._reading[0] == seen and self._reading[1] is prompt:
            return
        self.check_whole()
        self.is_torn, self._reading = True, (seen, prompt)
        if prompt.ndim == 2 and seen == self.count:
            self._write(prompt)

    def end(self) -> None:
        """The pass has gone through all layers."""
        self.is_torn, self._reading = False, None
        self.passes += 1

    def rewind(self, seen: int) -> None:
        """The cache was set back to `seen` tokens, as if it had read no others."""
        self.is_torn, self._reading = False, None
        if self.count > seen:
            self.count, self._chosen = seen, None

    def catch_up(self, tokens: torch.Tensor, first: int, seen: int) -> None:
        """The cache has read `tokens` `[B, n]` behind its first `first` ones, and `seen` in all; those that were seen
        here are known already."""
        if first <= self.count < seen:
            self._write(tokens[:, self.count - first : seen - first])

    def settle(self, sequences: torch.Tensor, seen: int) -> None:
        """All tokens `[B, N]` of a call that has ended, of which the cache has read the first `seen`.

        Sequences that are too short, because their prompt was given as embeddings, say nothing.
        """
        if sequences.shape[1] <= seen:
            return
        if self.count != seen:
            self._held, self.count = None, 0
            self._write(sequences[:, :seen])
        self._chosen = sequences[:, seen:]

    @classmethod
    def joined(cls, parts: Sequence[Conversation], pads: Sequence[int], seen: int) -> Conversation:
        """The conversations of all parts as the rows of one, each behind its `pads`, `seen` tokens long."""
        new = cls()
        rows = [row[: part.count] for part in parts if part._held is not None for row in part._held]
        if len(rows) < len(pads):
            return new
        held = rows[0].new_zeros(len(pads), seen)
        for into, row, pad in zip(held, rows, pads, strict=True):
            own = row[max(0, len(row) - (seen - pad)) :]
            if len(own) < seen - pad:  # one of the parts is unknown, and so is the whole
                return new
            into[pad:] = own
        new._write(held)
        return new

    # -- what is asked ----------------------------------------------------------------------------------------------

    def check(self, ids: torch.Tensor | None, seen: int, pads: Sequence[int]) -> None:
        """Raise `OptionError` unless `ids` `[B, N]` are all tokens so far, pads aside, and at least one to read.

        `seen`: tokens that the cache has read; `pads` `[B]`: pads before each sequence.
        """
        self.check_whole()
        if ids is None:
            raise OptionError(f"a later turn needs input_ids: all tokens so far, followed by new ones; {RESET}")
        if seen != self.count:
            raise OptionError(f"the session does not know which {seen} tokens the cache has read: {RESET}")
        known = self._known()
        if ids.shape[0] != known.shape[0]:
            raise OptionError(f"the prompt has {ids.shape[0]} sequences, the conversation {known.shape[0]}; {RESET}")
        width = min(ids.shape[1], known.shape[1])
        given = ids[:, :width].to(known.device)
        real = torch.arange(width, device=known.device) >= torch.tensor(list(pads), device=known.device)[:, None]
        differing = ((given != known[:, :width]) & real).nonzero()
        if len(differing):
            row, place = differing[0].tolist()
            where = f"token {place}" if len(known) == 1 else f"token {place} of sequence {row}"
            told = f"{where} is {int(given[row, place])}, there it is {int(known[row, place])}"
            raise OptionError(f"the prompt does not continue the conversation: {told}; {RESET}")
        if ids.shape[1] <= self.count or width < known.shape[1]:
            told = f"the prompt's {ids.shape[1]} tokens are in the conversation already, which has {known.shape[1]}"
            raise OptionError(f"{told}, produced ones included: give all of them, followed by new ones; {RESET}")

    def check_whole(self) -> None:
        """Raise `OptionError` where an earlier pass was torn: nobody knows which layers have read it."""
        if self.is_torn:
            raise OptionError(f"an earlier call was interrupted while the model was reading: {RESET}")

    # -- the tokens -------------------------------------------------------------------------------------------------

    def _known(self) -> torch.Tensor:
        """Tokens read and chosen, `[B, N]`."""
        assert self._held is not None
        read = self._held[:, : self.count]
        return read if self._chosen is None else torch.cat([read, self._chosen.to(read.device)], 1)

    def _write(self, ids: torch.Tensor) -> None:
        """Add `ids` to what was read. The buffer is a plain tensor, so that it can be written in and out of inference
        mode."""
        batch, tokens = ids.shape
        needed = self.count + tokens
        if self._held is None or self._held.shape[1] < needed:
            with torch.inference_mode(False), torch.no_grad():
                room = torch.zeros(batch, max(MIN_ROOM, 2 * needed), dtype=torch.long, device=ids.device)
            if self._held is not None:
                room[:, : self.count] = self._held[:, : self.count]
            self._held = room
        self._held[:, self.count : needed] = ids
        self.count, self._chosen = needed, None

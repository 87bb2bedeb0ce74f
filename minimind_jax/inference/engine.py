"""Continuous batching: requests join and leave a running batch at any step.

One thread owns the device. Each round it reads a piece of waiting prompts, dispatches one decode step for all running
sequences and then, while the device computes, hands out the tokens of the step before. Where a sequence follows a
grammar, that is done between the logits and the choice, which must know all tokens before. Batch and cache grow and
shrink by powers of two, so few programs are compiled, whatever is asked for.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.inference import decode
from minimind_jax.inference.cache import MIN_SLOTS, Cache, count_slots, empty_cache, power_of_two
from minimind_jax.inference.constraint import Grammars
from minimind_jax.inference.options import Options
from minimind_jax.inference.prompt_reader import PIECE, PromptReader
from minimind_jax.inference.request import Piece, QueueFullError, Request
from minimind_jax.model import Params, unstack_layers
from minimind_jax.tokenizer import Tokenizer
from minimind_jax.tokenizer.text_stream import TextStream

_PATIENCE = 4  # rounds that a smaller batch must do before memory is moved to make it smaller


@dataclass
class Statistics:
    """Counters since the start."""

    new_tokens: int = 0
    programs: set[tuple[Any, ...]] = field(default_factory=set)  # kinds and sizes of what was compiled


class Engine:
    """A model that answers many requests at once. A context manager: leaving it ends the thread.

    Args:
      params: numpy or jax arrays; kept on the device in `dtype`.
      max_batch: sequences that are decoded together; more wait.
      max_queue: requests that may wait; one more raises QueueFullError.
      max_context: tokens of prompt and answer together; 0 = the model's limit.
      max_slots: of the cache, rows times tokens, which bounds its memory: requests that would need more wait until
        others have left. One alone always goes.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 32,
        max_queue: int = 256,
        max_context: int = 0,
        max_slots: int = 2**17,
        dtype: jnp.dtype = jnp.float32,
        on_compile: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.max_context = min(max_context or config.max_seq_len, config.max_seq_len)
        self.statistics = Statistics()
        self.grammars = Grammars(tokenizer, config.vocab_size)
        self._params = unstack_layers(params, dtype)
        self._dtype, self._max_batch, self._max_queue = dtype, max_batch, max_queue
        self._max_slots = max_slots
        self._on_compile = on_compile
        self._waiting: collections.deque[Request] = collections.deque()
        self._rows: list[Request | None] = [None]
        self._state = self._empty(1, MIN_SLOTS)
        self._reader = PromptReader(config, self._params, dtype, self._compiling)
        self._in_flight: tuple[decode.Step, list[tuple[int, Request]]] | None = None
        self._scored: list[Request] = []  # whose prompts' log-probabilities are on their way
        self._oversized = 0  # rounds in a row that a smaller batch could have done
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], options: Options, on_piece: Callable[[Piece], None]) -> Request:
        """Puts a request in line and returns at once.

        Args:
          prompt: token ids.
          on_piece: called with each new piece, in the engine's thread; the last one has a finish_reason.

        Raises:
          UserError: an empty prompt, an id outside the vocabulary, no room for an answer, or a grammar that cannot
            be followed.
          QueueFullError: too many are waiting.
        """
        if not len(prompt):
            raise UserError("the prompt is empty: give at least one token, such as the bos token")
        if not all(0 <= token < self.config.vocab_size for token in prompt):
            raise UserError(f"the prompt holds tokens outside the vocabulary of {self.config.vocab_size}")
        for token, _ in options.logit_bias:
            if token >= self.config.vocab_size:
                raise UserError(f"logit_bias={token} is no token: the vocabulary has {self.config.vocab_size}")
        room = self.max_context - len(prompt)
        if room < min(options.max_new_tokens, 1):
            raise UserError(
                f"the prompt has {len(prompt)} tokens, the limit for prompt and answer together is {self.max_context}: "
                "shorten it"
            )
        stream = TextStream(self.tokenizer, options.stop)
        constraint = self.grammars.constraint(options.grammar) if options.grammar else None
        request = Request(list(prompt), options, on_piece, min(options.max_new_tokens, room), stream, constraint)
        with self._wake:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if len(self._waiting) >= self._max_queue:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting: try again later")
            self._waiting.append(request)
            self._wake.notify()
        return request

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._closed

    @property
    def n_running(self) -> int:
        return sum(request is not None for request in self._rows)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Ends the thread; what is unfinished ends as cancelled."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # --- The thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closed or self._waiting or self.n_running or self._in_flight):
                    self._wake.wait()
                if self._closed:
                    break
            try:
                self._round()
            except Exception as e:  # one broken request must not end the others' server
                self._fail(f"{type(e).__name__}: {e}")
        self._end(lambda _: True, Piece("", finish_reason="cancelled"))

    def _round(self) -> None:
        self._drop_cancelled()
        self._read_prompts()
        before, self._in_flight = self._in_flight, None
        if any(request and request.n_dispatched < request.max_new_tokens for request in self._rows):
            self._fit()
            scores = self._read_tokens()
            if before and any(request and request.constraint for request in self._rows):
                self._hand_out(*before)
                before = None
            self._in_flight = self._choose(scores)
        if before:
            self._hand_out(*before)
        self._hand_out_scores()

    def _drop_cancelled(self) -> None:
        for request in [r for r in self._waiting if r.cancelled]:
            with self._wake:
                self._waiting.remove(request)
            self._finish(request, Piece("", finish_reason="cancelled"))
        for row, running in enumerate(self._rows):
            if running and running.cancelled:
                self._leave(row, Piece("", finish_reason="cancelled"))

    def _read_prompts(self) -> None:
        """Reads up to `PIECE` tokens of waiting prompts, so that running sequences never wait for longer."""
        budget = PIECE
        while self._waiting and budget > 0 and self.n_running < self._max_batch:
            request = self._waiting[0]
            if not self._has_room(request):
                break
            budget -= self._reader.read(request)
            if request.n_read >= len(request.prompt) - 1:
                if request.options.score_prompt:
                    self._scored.append(request)
                if request.max_new_tokens:
                    self._join(request)
                with self._wake:
                    self._waiting.popleft()

    def _has_room(self, request: Request) -> bool:
        """Whether the cache stays within its bound even if all run to their limits."""
        running = [r for r in self._rows if r]
        longest = max(len(r.prompt) + r.max_new_tokens for r in [*running, request])
        n_rows = power_of_two(len(running) + 1, 1)
        return not running or n_rows * power_of_two(longest, MIN_SLOTS) <= self._max_slots

    def _join(self, request: Request) -> None:
        assert request.prompt_cache is not None
        n, options = len(request.prompt), request.options
        needed = max(count_slots(request.prompt_cache), self._slots_needed(n + 1))
        size = (len(self._rows), count_slots(self._state[0]))
        n_rows, n_slots = size[0] if None in self._rows else 2 * size[0], max(needed, size[1])
        if n_rows * n_slots > self._max_slots:
            n_rows, n_slots = min(n_rows, power_of_two(self.n_running + 1, 1)), needed
        if (n_rows, n_slots) != size:
            self._resize(n_rows, n_slots)
        row = self._rows.index(None)
        new = decode.make_rows(
            [request.prompt], [request.max_new_tokens], options, self.tokenizer.eos_id, self.config.vocab_size
        )
        self._compiling("join", len(self._rows), count_slots(self._state[0]), count_slots(request.prompt_cache))
        self._state = decode.admit(*self._state, request.prompt_cache, new, np.int32(row))
        request.prompt_cache = None
        self._rows[row] = request

    def _fit(self) -> None:
        """Grows the cache where the next step needs it, and shrinks the batch when it has been too large for long."""
        n_slots, n_rows = self._slots_needed(), power_of_two(self.n_running, 1)
        size = (len(self._rows), count_slots(self._state[0]))
        self._oversized = self._oversized + 1 if (n_rows, n_slots) < size or n_slots < size[1] else 0
        if n_slots > size[1]:
            self._resize(size[0] if size[0] * n_slots <= self._max_slots else n_rows, n_slots)
        elif self._oversized > _PATIENCE:
            self._resize(n_rows, n_slots)
            self._oversized = 0

    def _slots_needed(self, least: int = 1) -> int:
        """For the next step of all that run."""
        used = [len(request.prompt) + request.n_dispatched + 1 for request in self._rows if request]
        return power_of_two(max([least, *used]), MIN_SLOTS)

    def _resize(self, n_rows: int, n_slots: int) -> None:
        """Running sequences move to the front rows. Goes by doubling or halving, which bounds the programs."""
        while (size := (len(self._rows), count_slots(self._state[0]))) != (n_rows, n_slots):
            if n_rows < size[0] or n_slots < size[1]:  # first, so that no more memory is needed on the way
                to = (size[0] // 2, size[1]) if n_rows < size[0] else (size[0], size[1] // 2)
            else:
                to = (size[0], 2 * size[1]) if n_slots > size[1] else (2 * size[0], size[1])
            order = sorted(range(size[0]), key=lambda row: self._rows[row] is None)[: to[0]]
            chosen = np.array([*order, *[0] * (to[0] - len(order))], np.int32)
            self._compiling("resize", *size, *to)
            self._state = decode.resize(*self._state, chosen, to[1])
            self._rows = [*(self._rows[row] for row in order), *[None] * (to[0] - len(order))]

    def _read_tokens(self) -> jax.Array:
        """Dispatches the step's first half: its logits."""
        self._compiling("decode", len(self._rows), count_slots(self._state[0]))
        cache, scores = decode.read_tokens(self.config, self._params, *self._state)
        self._state = (cache, self._state[1])
        return scores

    def _choose(self, scores: jax.Array) -> tuple[decode.Step, list[tuple[int, Request]]]:
        """Dispatches its second half: its tokens."""
        masks = self._masks()
        cache, rows = self._state
        if masks is None:
            rows, step = decode.choose_with_logprobs(scores, rows)
        else:
            self._compiling("constrained choice", len(rows.tokens))
            rows, step = decode.choose_allowed(scores, rows, masks)
        self._state = (cache, rows)
        taking_part = [(r, row) for row, r in enumerate(self._rows) if r and r.n_dispatched < r.max_new_tokens]
        for request, _ in taking_part:
            request.n_dispatched += 1
        return step, [(row, request) for request, row in taking_part]

    def _masks(self) -> np.ndarray | None:
        """The tokens that may come next, where a grammar says so; who cannot go on leaves."""
        constraints = [(row, r, r.constraint) for row, r in enumerate(self._rows) if r and r.constraint]
        if not constraints:
            return None
        masks = self.grammars.free_masks(len(self._rows))
        for row, request, constraint in constraints:
            if request.n_dispatched < request.max_new_tokens:
                constraint.fill(masks[row])
                if constraint.error:
                    self._leave(row, Piece("", finish_reason="error", error=constraint.error))
                    masks[row] = -1
        return masks

    def _hand_out(self, step: decode.Step, taking_part: list[tuple[int, Request]]) -> None:
        step = jax.device_get(step)
        for row, request in taking_part:
            if request.done:
                continue
            token, options = request.token(step, row), request.options
            ends = (token.id == self.tokenizer.eos_id and not options.ignore_eos) or token.id in options.stop_token_ids
            text = ""
            if not ends:
                request.n_new += 1
                self.statistics.new_tokens += 1
                text = request.stream.push(token.id)
                if request.constraint:
                    request.constraint.push(token.id)
            reported = () if ends else (token,)
            stops = ends or request.stream.stopped or (request.constraint and request.constraint.is_complete)
            reason = "stop" if stops else "length" if request.n_new == request.max_new_tokens else ""
            if reason:
                text += request.stream.finish()
                if request.stream.stopped:
                    reason = "stop"
                last = Piece(text, reported, reason, end=token if ends else None)
                self._leave(self._rows.index(request), last)
            else:
                self._send(request, Piece(text, reported))

    def _hand_out_scores(self) -> None:
        while self._scored:
            request = self._scored[0]
            tokens = request.take_prompt_tokens()
            self._scored.pop(0)
            if request.done:
                continue
            if request.max_new_tokens:
                self._send(request, Piece("", prompt=tokens))
            else:
                self._finish(request, Piece("", finish_reason="length", prompt=tokens))

    def _send(self, request: Request, piece: Piece) -> None:
        try:
            request.on_piece(piece)
        except Exception:  # whoever asked is gone, and nobody else shall notice
            request.cancel()

    def _leave(self, row: int, last: Piece) -> None:
        request = self._rows[row]
        assert request
        self._rows[row] = None
        cache, rows = self._state
        self._state = (cache, decode.halt(rows, np.int32(row)))
        self._finish(request, last)

    def _finish(self, request: Request, last: Piece) -> None:
        request.done = True
        request.prompt_cache = None
        self._send(request, last)

    def _fail(self, message: str) -> None:
        """Ends what was under way, and begins anew with an empty batch; requests that were not begun stay in line."""
        self._end(lambda request: request.begun, Piece("", finish_reason="error", error=message))
        self._in_flight, self._scored = None, []
        self._reader.forget()
        self._rows, self._state = [None], self._empty(1, MIN_SLOTS)

    def _end(self, which_waiting: Callable[[Request], bool], piece: Piece) -> None:
        """Ends all running and some waiting requests."""
        with self._wake:
            ended = [request for request in self._waiting if which_waiting(request)]
            self._waiting = collections.deque(request for request in self._waiting if not which_waiting(request))
        for request in [*(r for r in self._rows if r), *self._scored, *ended]:
            if not request.done:
                self._finish(request, piece)

    def _empty(self, n_rows: int, n_slots: int) -> tuple[Cache, decode.Rows]:
        rows = decode.make_rows([[0]] * n_rows, [0] * n_rows, Options(), -1, self.config.vocab_size, range(n_rows))
        return empty_cache(self.config, n_rows, n_slots, self._dtype), rows

    def _compiling(self, *program: Any) -> None:
        if program not in self.statistics.programs:
            self.statistics.programs.add(program)
            self._on_compile(f"compiling {program[0]} for {' x '.join(map(str, program[1:]))}")

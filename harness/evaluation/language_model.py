"""The model that lm-eval sees: it hands all requests of a run to the planner at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from adapters.base import OutOfMemory, Sampling
from harness.errors import UserError
from harness.evaluation.account import Account, account_for
from harness.evaluation.answering import AnsweringModel, repeats
from harness.models.heads import choice_scores, head_sequences, log_softmax
from harness.models.open import OpenModel
from harness.processes import ALONE, Processes
from harness.progress import Bar
from harness.records.provenance import peak_memory
from harness.scoring.encoding import ScoredSequence, cut_prompt, encode_pairs, rolling_sequences
from harness.scoring.generation import GenerationJob, generate_all
from harness.scoring.plan import make_plan
from harness.scoring.scorer import NotFinite, Projection, Scorer
from harness.scoring.store import ProgressStore
from harness.tasks import document_key, get_task, task_names


class PlannedModel(AnsweringModel):
    """lm-eval's interface over an open model and the planner.

    Args:
        opened: The model. Heads of a multitask checkpoint answer the tasks that they were trained for.
        batch_tokens: Token budget of a batch; None: what suits the backend.
        store: Keeps what was scored.
        seed: For sampled generation.
        processes: Those that share the work.
    """

    def __init__(
        self,
        opened: OpenModel,
        batch_tokens: int | None = None,
        store: ProgressStore | None = None,
        seed: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__()
        self.opened = opened
        self.heads = opened.heads
        self.backend = opened.backend
        self.encoder = opened.encoder
        self.batch_tokens = batch_tokens or self.backend.info.batch_tokens
        self.scorer = Scorer(self.backend, store, processes)
        self.single_bytes = 0  # peak memory after one document at batch size 1
        self.generated_prompt_tokens = 0
        self._store = store
        self._seed = seed
        self._processes = processes

    @property
    def applies_chat_template(self) -> bool:
        return self.opened.template.applied

    def account(self, scoring_seconds: float) -> Account:
        return account_for(self, self._processes, scoring_seconds)

    @property
    def tokenizer_name(self) -> str:
        return str(self.opened.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.opened.template.text(chat_history, add_generation_prompt)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        by_head = [
            number
            for number, request in enumerate(requests)
            if self.head_kind(_task_of(request)) not in (None, "likelihood")
        ]
        by_likelihood = sorted(set(range(len(requests))) - set(by_head))
        scores: dict[int, tuple[float, bool]] = {}
        if by_likelihood:
            chosen = [requests[number] for number in by_likelihood]
            pairs = [request.args for request in chosen]
            sequences = encode_pairs(self.encoder, pairs, self._context_length)
            self._note_truncated(chosen, sequences)
            scores |= zip(by_likelihood, self._score(chosen, sequences, "choices by likelihood"), strict=True)
        if by_head:
            scores |= self._head_scores(requests, by_head)
        return [scores[number] for number in range(len(requests))]

    def head_kind(self, task: str) -> str | None:
        if self.heads is None or task not in task_names():  # lm-eval's own tasks have no heads
            return None
        return self.heads.layout.kinds.get(get_task(task).head_owner)

    def _head_scores(self, requests: Sequence[Instance], numbers: Sequence[int]) -> dict[int, tuple[float, bool]]:
        """Return the log-probabilities that heads give the choices of each document, by the number of the request."""
        assert self.heads is not None
        documents: dict[tuple[str, int], list[int]] = {}
        for number in numbers:
            documents.setdefault((_task_of(requests[number]), requests[number].doc_id), []).append(number)
        # Texts that several documents compare are read once.
        places: dict[ScoredSequence, int] = {}
        asked_by: list[Instance] = []
        parts: list[list[int]] = []
        for (task, _), members in documents.items():
            pairs = [requests[number].args for number in members]
            sequences = head_sequences(self.encoder, self.heads.layout, task, pairs, self._context_length)
            self._note_truncated([requests[n] for n in members], sequences[:: len(sequences) // len(members)])
            parts.append([places.setdefault(sequence, len(places)) for sequence in sequences])
            asked_by += [requests[members[0]]] * (len(places) - len(asked_by))
        raw = self._score(asked_by, list(places), "choices by heads", self.heads.project)
        found: dict[int, tuple[float, bool]] = {}
        for ((task, _), members), places_of in zip(documents.items(), parts, strict=True):
            kind = self.heads.layout.kinds[get_task(task).head_owner]
            scores = choice_scores(kind, [raw[place][0] for place in places_of])
            for number, logprob in zip(members, log_softmax(scores), strict=True):
                found[number] = (float(logprob), False)
        return found

    def _note_truncated(self, requests: Sequence[Instance], sequences: Sequence[ScoredSequence]) -> None:
        for request, sequence in zip(requests, sequences, strict=True):
            self.truncated[str(request.task_name)] += sequence.dropped > 0

    def _score(
        self,
        requests: Sequence[Instance],
        sequences: Sequence[ScoredSequence],
        what: str,
        project: Projection | None = None,
    ) -> list[tuple[float, bool]]:
        plan = make_plan(sequences, self.batch_tokens, self.opened.backend.shares_prefixes)
        try:
            self._note_single_document(sequences, project)
            with Bar(f"scoring {what}", plan.tokens_computed // self._processes.size, "tok") as bar:
                scores = self.scorer.score(plan, sequences, bar.advance, project)
        except NotFinite as error:
            bad = requests[error.sequence]
            raise UserError(
                f"the model gives NaN for task {bad.task_name}, document {_document_name(bad)!r}",
                "the weights are damaged or overflow in this type: try --dtype float32",
            ) from error
        except OutOfMemory as error:
            raise self._too_large(error) from error
        return [(score.logprob, score.greedy) for score in scores]

    def _note_single_document(self, sequences: Sequence[ScoredSequence], project: Projection | None) -> None:
        """Measure the memory at batch size 1: score the longest request alone, before anything larger is computed."""
        if self.single_bytes:
            return
        longest = max(sequences, key=lambda sequence: len(sequence.tokens))
        hidden, _ = self.backend.hidden_states([longest.inputs], [[len(longest.inputs) - 1]])
        (project or self.backend.project)(hidden, np.zeros(1, dtype=np.int64), np.array(longest.tokens[-1:]))
        self.single_bytes, _ = peak_memory(self.backend)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        jobs = [self._job(request, repeat) for request, repeat in zip(requests, repeats(requests), strict=True)]
        self.generated_prompt_tokens += sum(len(job.prompt) for job in jobs)
        try:
            with Bar("generating answers", len(jobs) // self._processes.size, "answer") as bar:
                return generate_all(self.backend, jobs, self.batch_tokens, self._store, bar.advance, self._processes)
        except OutOfMemory as error:
            raise self._too_large(error) from error

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows = [rolling_sequences(self.encoder, request.args[0], self._context_length) for request in requests]
        asked_by = [request for request, cut in zip(requests, windows, strict=True) for _ in cut]
        scores = iter(self._score(asked_by, [window for cut in windows for window in cut], "texts"))
        return [sum(next(scores)[0] for _ in cut) for cut in windows]

    def _too_large(self, error: OutOfMemory) -> UserError:
        return UserError(
            f"not enough memory on {self.backend.info.device} even for a single document: {error}",
            "use a smaller model, fewer bits (--backend mlx-q4) or fewer few-shot examples",
        )

    @property
    def _context_length(self) -> int:
        return self.backend.info.context_length

    def _job(self, request: Instance, repeat: int) -> GenerationJob:
        context, asked = request.args
        options = normalize_gen_kwargs(asked)
        limit = int(options["max_gen_toks"])
        if limit >= self._context_length:
            raise UserError(
                f"{request.task_name} asks for {limit} new tokens, and the context holds {self._context_length}",
                "leave the task out, or use a model with a longer context",
            )
        tokens = self.encoder.encode(context)
        kept = cut_prompt(tokens, self._context_length - limit, self.encoder.bos_id)
        self.truncated[str(request.task_name)] += len(kept) < len(tokens)
        sampling = Sampling(
            max_new_tokens=limit,
            stop=tuple(stop for stop in options["until"] if stop),
            temperature=float(options.get("temperature", 0.0)),
            top_p=float(options.get("top_p", 1.0)),
            seed=self._seed + repeat,
        )
        return GenerationJob(tuple(kept), sampling)


def _task_of(request: Instance) -> str:
    """Return the name of the task whose documents the request is about."""
    return str(request.task_name).removeprefix("rsg_")


def _document_name(request: Instance) -> Hashable:
    """Return the idx of a document, or its number in the split where it has none."""
    return document_key(request.doc) if "idx" in request.doc else request.doc_id

"""EngineMetrics: what an engine counts and times, under the names that dashboards of vLLM know, with izwi: in front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from izwi_lab.engine.instruments import Counter, Gauge, Histogram, Instrument
from izwi_lab.engine.plan import Plan
from izwi_lab.engine.request import FinishReason, Sequence
from izwi_lab.engine.scheduler import Scheduler

MODEL = ("model_name",)  # no label has more values than there are models or ways to end: a series costs memory for good
_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10)
_FIRST_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 5, 7.5, 10, 20, 40, 80)
_WHOLE_S = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_RTF = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 3, 5, 10)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
_STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_QUANTILES = (0.5, 0.9, 0.99)


class EngineMetrics:
    """All metrics of an engine, one series a model. Safe to use from many threads."""

    def __init__(self) -> None:
        def seconds(name: str, about: str, bounds: tuple[float, ...]) -> Histogram:
            return Histogram(f"izwi:{name}_seconds", about, bounds, MODEL)

        self.running = Gauge("izwi:num_requests_running", "Requests that are in the batch.", MODEL)
        self.waiting = Gauge("izwi:num_requests_waiting", "Requests that wait for their turn.", MODEL)
        self.kv_usage = Gauge("izwi:kv_cache_usage_perc", "Caches in use; 1 is all of them.", MODEL)
        self.prefix_queries = Counter(
            "izwi:prefix_cache_queries_total", "Tokens of prompts looked up in the prefix cache.", MODEL
        )
        self.prefix_hits = Counter(
            "izwi:prefix_cache_hits_total", "Tokens of prompts found in the prefix cache.", MODEL
        )
        self.preemptions = Counter("izwi:num_preemptions_total", "Sequences that gave up their caches.", MODEL)
        self.prompt_tokens = Counter("izwi:prompt_tokens_total", "Tokens of the prompts of started requests.", MODEL)
        self.generation_tokens = Counter("izwi:generation_tokens_total", "Tokens generated.", MODEL)
        self.audio_s = Counter("izwi:audio_seconds_total", "Seconds of audio made or heard.", MODEL)
        self.ended = Counter("izwi:request_success_total", "Requests by how they ended.", (*MODEL, "finished_reason"))
        self.refused = Counter("izwi:requests_refused_total", "Requests that met a full queue.", MODEL)
        self.queue_s = seconds("request_queue_time", "From arrival to the first step.", _FIRST_S)
        self.first_token_s = seconds("time_to_first_token", "From arrival to the first token.", _FIRST_S)
        self.first_audio_s = seconds("time_to_first_audio", "From arrival to the first audio.", _FIRST_S)
        self.inter_token_s = seconds("inter_token_latency", "Between two tokens of a sequence.", _SHORT_S)
        self.prefill_s = seconds("request_prefill_time", "From the first step to the first token.", _FIRST_S)
        self.decode_s = seconds("request_decode_time", "From the first token to the last.", _WHOLE_S)
        self.whole_s = seconds("e2e_request_latency", "From arrival to the end.", _WHOLE_S)
        self.step_s = seconds("step_time", "One step of the batch.", _SHORT_S)
        self.rtf = Histogram("izwi:real_time_factor", "Seconds of work per second of audio.", _RTF, MODEL)
        self.step_tokens = Histogram("izwi:iteration_tokens_total", "Tokens computed in one step.", _STEP_TOKENS, MODEL)
        self.request_prompt = Histogram("izwi:request_prompt_tokens", "Tokens of a prompt.", _TOKENS, MODEL)
        self.request_output = Histogram("izwi:request_generation_tokens", "Tokens of an answer.", _TOKENS, MODEL)
        self._counted: dict[str, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"EngineMetrics({', '.join(model for (model,) in self.running.series()) or 'no model yet'})"

    # telling them

    def stepped(
        self, model: str, plan: Plan, ended: Iterable[Sequence], scheduler: Scheduler, *, seconds: float, now: float
    ) -> None:
        """A step is done (or there was nothing to do). now: what `Scheduler.done` was told; ended: what it returned."""
        if plan:
            self.step_s.observe(seconds, model)
            self.step_tokens.observe(plan.tokens, model)
        self.preemptions.add(len(plan.preempted), model)
        for piece in plan.pieces:
            sequence = piece.sequence
            if not piece.wants_logits or sequence.last_token_s != now:
                continue
            self.generation_tokens.add(1, model)
            if sequence.token_gap_s is None:
                self.first_token_s.observe(now - sequence.request.arrival_s, model)
            else:
                self.inter_token_s.observe(sequence.token_gap_s, model)
        for sequence in (*plan.finished, *ended):
            self._sequence_ended(model, sequence)
        self.standing(model, scheduler)

    def standing(self, model: str, scheduler: Scheduler) -> None:
        """How the queue and the caches of a model stand."""
        stats = scheduler.blocks.stats()
        self.running.set(len(scheduler.running), model)
        self.waiting.set(len(scheduler.waiting), model)
        self.kv_usage.set(stats.usage, model)
        queries, hits = self._counted.get(model, (0, 0))
        if stats.queries < queries:  # loaded anew
            queries = hits = 0
        self.prefix_queries.add((stats.queries - queries) * stats.block_size, model)
        self.prefix_hits.add((stats.hits - hits) * stats.block_size, model)
        self._counted[model] = stats.queries, stats.hits

    def finished(self, model: str, reason: FinishReason, seconds: float) -> None:
        """A request is over, so long after it came; it may have had many sequences, or none."""
        self.ended.add(1, model, reason.value)
        self.whole_s.observe(seconds, model)

    def refuse(self, model: str) -> None:
        """A request met a full queue."""
        self.refused.add(1, model)

    def first_audio(self, model: str, seconds: float) -> None:
        """The first audio of a request came after so long."""
        self.first_audio_s.observe(seconds, model)

    def audio(self, model: str, audio_s: float, seconds: float) -> None:
        """A request made or heard so much audio, in so much time of work."""
        self.audio_s.add(audio_s, model)
        if audio_s > 0:
            self.rtf.observe(seconds / audio_s, model)

    def forget(self, model: str) -> None:
        """A model left: what stood of it stands no more. What was counted stays."""
        for gauge in (self.running, self.waiting, self.kv_usage):
            gauge.forget(model)
        self._counted.pop(model, None)

    def _sequence_ended(self, model: str, sequence: Sequence) -> None:
        arrival_s, prompt = sequence.request.arrival_s, len(sequence.request.prompt)
        if sequence.started_s is not None:
            self.queue_s.observe(sequence.started_s - arrival_s, model)
            self.prompt_tokens.add(prompt, model)
            self.request_prompt.observe(prompt, model)
            self.request_output.observe(sequence.said, model)
            if sequence.first_token_s is not None and sequence.last_token_s is not None:
                self.prefill_s.observe(sequence.first_token_s - sequence.started_s, model)
                self.decode_s.observe(sequence.last_token_s - sequence.first_token_s, model)

    # asking them

    def instruments(self) -> tuple[Instrument[object], ...]:
        """All metrics, by name."""
        found = [value for value in vars(self).values() if isinstance(value, Instrument)]
        return tuple(sorted(found, key=lambda instrument: instrument.name))

    def text(self) -> str:
        """All of them in Prometheus' text format (`instruments.CONTENT_TYPE`)."""
        return "".join(instrument.text() for instrument in self.instruments())

    def rows(self) -> list[Mapping[str, object]]:
        """What was timed, a row for each metric and model: count, mean, p50, p90, p99 (estimated from buckets)."""
        return [
            {"metric": spread.name, "model": key[0], "count": spread.count(*key), "mean": spread.mean(*key)}
            | {f"p{100 * share:.0f}": spread.quantile(share, *key) for share in _QUANTILES}
            for spread in self.instruments()
            if isinstance(spread, Histogram)
            for key in spread.series()
        ]

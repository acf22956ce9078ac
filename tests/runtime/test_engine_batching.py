"""The engine under load, on tiny checkpoints: equal answers, full queues, tenants, and what is let go."""

from __future__ import annotations

import gc
import os
import select
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from family_checkpoints import write_folder, write_tokenizer
from runtime_fakes import wait_for

import izwi_lab as izwi
from izwi_lab.errors import InvalidInputError, QueueFullError
from izwi_lab.settings import Settings

QUESTIONS = [
    f"{word} {word[::-1]} ?" for word in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
]
WARM = izwi.Sampling(temperature=1.0, top_k=30, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name in ("llama", "gemma3", "lfm2"):
        made[name] = write_folder(tmp_path_factory.mktemp(name), name)
        write_tokenizer(made[name])
    return made


@pytest.fixture
def make_engine():
    made = []

    def make(**options):
        made.append(izwi.InferenceEngine(config=Settings(), dtype="float32", **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def options(number):
    return {"max_tokens": 6 + 3 * number, "seed": number, "sampling": WARM if number % 2 else None}


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_models_under_load_say_what_they_say_alone(make_engine, folders, backend):
    engine = make_engine(backend=backend, device="cpu")
    asked = [(name, number) for number in range(6) for name in folders]
    alone = {}
    for name in folders:
        with engine.use(folders[name]) as model:
            for number in range(6):
                alone[name, number] = model.generate(QUESTIONS[number], **options(number)).tokens
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = pool.map(lambda a: engine.chat(QUESTIONS[a[1]], model=folders[a[0]], **options(a[1])), asked)
        said = {a: reply.tokens for a, reply in zip(asked, replies, strict=True)}
    assert said == alone
    for name in folders:
        steps = engine.explain(folders[name]).steps
        assert max(len(step.pieces) for step in steps) > 1, f"{name}: nothing ran together"


def test_a_full_queue_says_when_to_come_again(make_engine, folders):
    engine = make_engine(batching=izwi.LaneOptions(sequences=1), queue=izwi.QueueLimits(requests=2))
    engine.load(folders["llama"])
    streams = [engine.stream_chat("go on and on", model=folders["llama"], max_tokens=400)]
    next(streams[0])
    streams += [engine.stream_chat("x", model=folders["llama"], max_tokens=2) for _ in range(2)]
    with pytest.raises(QueueFullError, match="full: 2 of 2") as full:
        engine.chat("x", model=folders["llama"])
    assert full.value.retry_after_s > 0
    assert sum(row.in_use for row in engine.loaded()) == 3, "who was refused holds no model"
    streams[0].close()
    assert [len(list(stream)) for stream in streams[1:]] == [3, 3]
    assert "izwi:requests_refused_total" in engine.metrics.text()


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_what_one_tenant_read_is_not_given_to_another(make_engine, folders, name):
    engine = make_engine()
    cached = []
    for tenant in ("ada", "ada", "bob"):
        request = izwi.ChatRequest(messages="word " * 40, model=folders[name], max_tokens=2, tenant=tenant)
        cached.append(engine.run(request).usage.cached_tokens)
    assert cached[0] == cached[2] == 0 < cached[1]


def test_standing_is_checked(make_engine, folders):
    engine = make_engine()
    with pytest.raises(InvalidInputError, match="priority must be one of low"):
        engine.run(izwi.ChatRequest(messages="x", model=folders["llama"], priority="urgent"))
    with pytest.raises(InvalidInputError, match="tenant must be a str"):
        engine.run(izwi.ChatRequest(messages="x", model=folders["llama"], tenant=7))


def test_a_model_that_leaves_takes_its_caches_with_it(make_engine, folders):
    engine = make_engine()
    engine.chat("hello", model=folders["llama"], max_tokens=4)
    (row,) = engine.loaded()
    assert row.cache_bytes > 0 and row.nbytes > row.cache_bytes
    assert "PrefixTree" in repr(engine.explain(folders["llama"]))
    assert engine.unload(folders["llama"])
    with pytest.raises(InvalidInputError, match="No request has run"):
        engine.explain(folders["llama"])
    assert engine.chat("hello", model=folders["llama"], max_tokens=4).usage.cached_tokens == 0


def test_a_client_that_vanishes_stops_the_work(make_engine, folders):
    engine = make_engine()
    stream = engine.stream_chat("on and on", model=folders["llama"], max_tokens=1500)
    next(stream)
    del stream
    wait_for(lambda: not engine.loaded()[0].in_use)
    assert engine.metrics.ended.value(folders["llama"].name, "cancelled") == 1
    assert engine.metrics.generation_tokens.value(folders["llama"].name) < 1000
    assert not any(row["state"] == "used" for row in engine.explain(folders["llama"]).blocks.rows())


def test_conversations_of_slots_go_on_where_they_were(make_engine, folders):
    engine = make_engine()
    first = engine.chat("tell me " * 20, model=folders["lfm2"], max_tokens=5)
    turns = [{"role": "user", "content": "tell me " * 20}, {"role": "assistant", "content": first.text}]
    more = engine.chat([*turns, {"role": "user", "content": "go on"}], model=folders["lfm2"], max_tokens=5)
    assert more.usage.cached_tokens > 20
    with engine.use(folders["lfm2"]) as model:
        whole = model.generate([*turns, {"role": "user", "content": "go on"}], max_tokens=5)
    assert more.tokens == whole.tokens


def test_guesses_go_beside_the_batch(make_engine, folders):
    engine = make_engine()
    expected = engine.chat(QUESTIONS[0], model=folders["llama"], max_tokens=40).tokens
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(
                engine.chat,
                QUESTIONS[0],
                model=folders["llama"],
                max_tokens=40,
                speculative=izwi.PromptLookup() if n % 2 else None,
            )
            for n in range(4)
        ]
        assert all(job.result().tokens == expected for job in jobs)


def test_options_that_fit_nothing_are_an_error_and_no_wait(make_engine, folders):
    for name in ("sequences", "block", "step_s", "positions", "step_tokens", "policy"):
        with pytest.raises(InvalidInputError, match=name):
            izwi.LaneOptions(**{name: 0})
    engine = make_engine(batching=izwi.LaneOptions(positions=20, kv_bytes=0))
    with pytest.raises(InvalidInputError, match="more than all caches"):
        engine.chat("word " * 40, model=folders["llama"], max_tokens=2)
    assert engine.loaded()[0].in_use == 0
    assert len(engine._batching.admission) == 0
    long = make_engine().chat("go on", model=folders["llama"], max_tokens=100_000, stop=["e"])
    assert long.finish_reason in ("stop", "length"), "what may be said is bounded by the context, not refused"


def test_a_fault_of_a_lane_ends_what_runs_and_no_more(make_engine, folders, monkeypatch):
    engine = make_engine()
    with engine.use(folders["llama"]) as model:
        step_many = model.step_many
        monkeypatch.setattr(model, "step_many", lambda readings: [])
        with pytest.raises(izwi.IzwiError, match="A step failed"):
            engine.chat("x", model=folders["llama"], max_tokens=3)
        monkeypatch.setattr(model, "step_many", step_many)
        assert len(engine.chat("x", model=folders["llama"], max_tokens=3).tokens) == 3


def test_a_whole_answer_is_not_lost_by_closing(folders):
    with izwi.InferenceEngine(config=Settings()) as engine:
        stream = engine.stream_chat("on and on", model=folders["llama"], max_tokens=7)
        wait_for(lambda: stream._outbox.ended)
    assert len([d for d in stream if d.token is not None]) == 7
    only = izwi.InferenceEngine(config=Settings()).stream_chat("on and on", model=folders["llama"], max_tokens=7)
    gc.collect()
    assert len([d for d in only if d.token is not None]) == 7, "a stream keeps its engine"


def test_each_backend_of_a_model_is_explained(make_engine, folders):
    engine = make_engine()
    for backend, tokens in (("torch", 2), ("mlx", 4)):
        engine.chat("x", model=folders["llama"], backend=backend, device="cpu", max_tokens=tokens)
    steps = {b: len(engine.explain(folders["llama"], backend=b).steps) for b in ("torch", "mlx")}
    assert steps == {"torch": 2, "mlx": 4}
    assert len(engine.explain(folders["llama"], backend="cpu").steps) == 2, "cpu is torch's"
    with pytest.raises(izwi.IzwiError):
        engine.explain(folders["llama"], backend="abacus")


def in_a_child(work):
    """What `work` says in a forked child, which is given ten seconds."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # later Pythons warn of threads at a fork: that is what this is about
        child = os.fork()
    if not child:
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        assert select.select([reader], [], [], 10.0)[0], "the child waits for a lock that nobody will let go"
        return os.read(reader, 1000).decode()
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("what", ["chat", "load", "unload", "explain", "plan", "use", "loaded"])
def test_a_forked_child_is_told_to_spawn(make_engine, folders, what):
    engine = make_engine()
    engine.chat("x", model=folders["llama"], max_tokens=2)
    asked = {
        "chat": lambda: engine.chat("x", model=folders["llama"]),
        "use": lambda: engine.use(folders["llama"]).__enter__(),
        "loaded": engine.loaded,
    }
    ask = asked.get(what, lambda: getattr(engine, what)(folders["llama"]))
    held, done = threading.Event(), threading.Event()

    def work():
        try:
            ask()
        except izwi.IzwiError as error:
            engine.close()
            return str(error)
        return "it answered"

    def hold():  # a thread that is inside each of them at the fork
        with engine._guard, engine._registry._changed, engine._batching._guard:
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(30)
        assert "spawn" in in_a_child(work)
    finally:
        done.set()
        holder.join()


def test_an_engine_that_nobody_closed_ends_its_thread(folders):
    engine = izwi.InferenceEngine(config=Settings())
    engine.chat("x", model=folders["llama"], max_tokens=2)
    gc.disable()
    try:
        del engine  # its last reference, as nothing inside refers to it
        wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("izwi-")])
    finally:
        gc.enable()


def test_a_model_in_use_leaves_after_the_engine_has_closed(folders):
    engine = izwi.InferenceEngine(config=Settings())
    with engine.use(folders["llama"]) as model:
        closer = threading.Thread(target=engine.close)
        closer.start()
        wait_for(lambda: engine.closed)
    closer.join(10)
    assert model.net is None


def test_an_engine_that_closes_ends_what_runs(folders):
    engine = izwi.InferenceEngine(config=Settings())
    stream = engine.stream_chat("on and on", model=folders["llama"], max_tokens=1500)
    next(stream)
    engine.close()
    assert list(stream)[-1:] == [] or stream.closed
    assert not [t for t in threading.enumerate() if t.name.startswith("izwi-torch")]

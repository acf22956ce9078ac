"""Timeline, block map, prefix tree and metrics of an engine, drawn from values made by hand."""

from __future__ import annotations

import pytest
from lab_models import tiny
from matplotlib.colors import to_hex

from izwi_lab import lab
from izwi_lab.engine.block_view import BlockMap, BlockView, PrefixNode, PrefixTree
from izwi_lab.engine.chain import Scope
from izwi_lab.engine.metrics import EngineMetrics
from izwi_lab.engine.timeline import Explanation, PieceRecord, StepRecord
from izwi_lab.errors import InvalidInputError
from izwi_lab.lab import engine_blocks, engine_ink, engine_prefixes
from izwi_lab.lab.engine_steps import Bar, lives


def step(number, start_s, seconds, *pieces, preempted=(), finished=(), kind="pass", model="lm"):
    made = tuple(PieceRecord(*piece) for piece in pieces)
    return StepRecord(number, model, start_s, seconds, made, preempted, finished, 1, 0, 8, kind)


READ_A, SAY_A = ("ada/1", 0, 40, False), ("ada/1", 40, 1, True)
READ_B = ("bob/1", 0, 20, False)
STEPS = (
    step(0, 7.0, 0.1, READ_A),
    step(1, 7.1, 0.2, SAY_A, READ_B),
    step(2, 7.3, 0.05, SAY_A, preempted=("bob/1",)),
    step(3, 7.4, 0.05, SAY_A, finished=("bob/1", "ada/1")),
)


def explanation(steps=(), blocks=(), roots=()):
    return Explanation(tuple(steps), BlockMap(tuple(blocks), 4), PrefixTree(tuple(roots)))


def drawn_bars(figure):
    """Left, right and height of each bar, by the label of its row and its colour."""
    axis = figure.axes[0]
    names = dict(zip(axis.get_yticks(), (label.get_text() for label in axis.get_yticklabels()), strict=True))
    found = {}
    for collection in axis.collections:
        if type(collection).__name__ != "PolyCollection":
            continue  # the lines where steps begin
        for path in collection.get_paths():
            box = path.get_extents()
            row = names[round((box.y0 + box.y1) / 2)]
            colour = to_hex(collection.get_facecolor()[0])
            found.setdefault((row, colour), []).append((round(box.x0), round(box.x1), round(box.height, 2)))
    return found


def test_bars_are_as_wide_as_their_steps_and_coloured_by_their_work():
    figure = lab.timeline(explanation(STEPS))
    assert drawn_bars(figure) == {
        ("ada", engine_ink.BLUE): [(0, 100, 0.8)],
        ("ada", engine_ink.ORANGE): [(100, 300, 0.45), (300, 350, 0.45), (400, 450, 0.45)],
        ("bob", engine_ink.BLUE): [(100, 300, 0.8)],
    }
    assert [text.get_text() for text in figure.axes[0].texts] == ["40", "20"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "reads its prompt",
        "says a token",
        "gives its blocks up",
        "ends",
    ]


def test_preemptions_stand_before_a_step_and_ends_after_it_for_those_who_were_in_it():
    found = lives(STEPS)
    ada, bob = found["lm", "ada"], found["lm", "bob"]
    assert bob.bars == [Bar("prefill", pytest.approx(0.1), 0.2, 20)]
    assert (ada.preempted_s, ada.ended_s) == ([], [pytest.approx(0.45)])
    assert (bob.preempted_s, bob.ended_s) == ([pytest.approx(0.3)], [pytest.approx(0.4)])
    marks = {(line.get_marker(), tuple(line.get_xdata()), tuple(line.get_ydata())) for line in _lines(STEPS)}
    assert marks == {("o", (450.0,), (0,)), ("o", (400.0,), (1,)), ("X", (300.0,), (1,))}


def _lines(steps):
    lines = lab.timeline(explanation(steps)).axes[0].lines
    for line in lines:
        line.set_data([round(x, 6) for x in line.get_xdata()], line.get_ydata())
    return lines


def test_requests_are_shown_alone_and_in_the_order_asked_for():
    assert list(lives(STEPS, requests=["bob", "ada"])) == [("lm", "bob"), ("lm", "ada")]
    only = lives(STEPS, requests={"bob"})
    assert list(only) == [("lm", "bob")] and only["lm", "bob"].bars[0].start_s == 0
    with pytest.raises(InvalidInputError, match="requests eve"):
        lab.timeline(explanation(STEPS), requests=["eve"])
    with pytest.raises(InvalidInputError, match="no step"):
        lab.timeline(explanation())


def test_models_of_one_engine_share_the_clock_and_name_their_other_work():
    voice = step(-1, 7.35, 0.04, ("say/1", 0, 1, False), kind="alone", model="tts")
    figure = lab.timeline(explanation([voice]), explanation(STEPS))
    bars = drawn_bars(figure)
    assert bars["say/1 (tts)", engine_ink.GREEN] == [(350, 390, 0.8)]  # its id is not cut: it is no sequence's
    assert {row for row, _ in bars} == {"ada (lm)", "bob (lm)", "say/1 (tts)"}
    assert "alone" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_long_past_is_cut_to_the_last_requests():
    many = [step(i, float(i), 0.5, (f"r{i}/1", 0, 3, False)) for i in range(60)]
    figure = lab.timeline(explanation(many))
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == [f"r{i}" for i in range(12, 60)]


def test_a_figure_shows_itself_and_the_page_shows_through():
    figure = lab.timeline(explanation(STEPS))
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert figure.get_facecolor()[3] == 0 and figure.axes[0].get_facecolor()[3] == 0


BLOCKS = (
    BlockView(0, "shared", 2, True, ("ada/1", "bob/1")),
    BlockView(1, "used", 1, True, ("ada/1",)),
    BlockView(2, "cached", 0, True),
    BlockView(3, "used", 1, False, ("bob/1",)),
    *(BlockView(i, "free") for i in range(4, 100)),
)


def test_blocks_are_coloured_by_state_and_owner():
    figure = lab.block_map(explanation(blocks=BLOCKS))
    axis = figure.axes[0]
    (cells,) = axis.collections
    colours = [to_hex(c, keep_alpha=True) for c in cells.get_facecolor()]
    assert len(colours) == 32 and set(colours[4:]) == {"#00000000"}
    assert [c[:7] for c in colours[:4]] == [engine_ink.PURPLE, engine_ink.BLUE, "#9a9a9a", engine_ink.ORANGE]
    assert [text.get_text() for text in axis.texts] == ["2", "A", "B"]
    assert axis.get_title() == "100 blocks of 4 positions, 68 more are free"
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == [
        "free: 96",
        "cached, nobody's now: 1",
        "shared (by how many): 1",
        "A ada: 2",
        "B bob: 2",
    ]


def test_a_map_ends_with_the_row_of_the_last_block_in_use():
    free = tuple(BlockView(i, "free") for i in range(70))
    assert engine_blocks.shown(free) == 32
    assert engine_blocks.shown((*free[:33], BlockView(33, "cached"), *free[34:])) == 64
    assert engine_blocks.shown(free[:5]) == 5
    many = tuple(BlockView(i, "cached") for i in range(3000))
    assert engine_blocks.shown(many) == 2048
    figure = lab.block_map(explanation(blocks=many))
    assert figure.axes[0].get_title().endswith("952 more are not drawn") and not figure.axes[0].texts


def test_letters_stay_readable_and_ids_short():
    assert [engine_ink.on(colour) for colour in (engine_ink.BLUE, engine_ink.YELLOW)] == ["white", "black"]
    assert engine_ink.short("0123456789abcdef" * 2) == "01234567"
    assert engine_ink.short("a name that is long") == "a name that is …"
    assert [engine_ink.request_of(name) for name in ("a/1", "a/b/12", "a/b", "a")] == ["a", "a/b", "a/b", "a"]
    names = {f"r{i}/1": engine_blocks.owners((BlockView(0, "shared", 60, True, (f"r{i}/1",)),)) for i in range(2)}
    assert names == {"r0/1": {"r0": "A"}, "r1/1": {"r1": "A"}}


def test_letters_run_out_after_52():
    block = BlockView(0, "shared", 60, True, tuple(f"r{i}/1" for i in range(60)))
    letters = engine_blocks.owners((block,))
    assert (letters["r0"], letters["r51"], letters["r52"]) == ("A", "z", "*")


def tree_of(model):
    """Blocks 0 and 1 follow each other; 2 and 3 go on from 1. ada holds 0, 1 and 2."""
    ids = {
        i: tuple(model.tokenize(text, template=False).ids.tolist()) for i, text in enumerate(("Hi ", "<b>", "é", "no"))
    }
    leaves = PrefixNode(2, (0, *ids[2]), 1), PrefixNode(3, ids[3], 0)
    root = PrefixNode(0, ids[0], 1, (PrefixNode(1, ids[1], 1, leaves),))
    blocks = [BlockView(i, "used", 1, True, ("ada/1",)) for i in range(3)] + [BlockView(3, "cached")]
    return explanation(blocks=blocks, roots=[(Scope("lm", "acme", b"\x01"), (root,))])


def test_the_tree_says_its_tokens_and_who_holds_them():
    model = tiny("torch")
    shown = lab.prefix_tree(tree_of(model), model)
    ((root, (both, said, other)),) = shown.roots
    assert root == "lm, tenant acme, key 01"
    assert (both.blocks, both.depth, both.text, both.holders) == ((0, 1), 0, "Hi <b>", ("ada",))
    assert (said.blocks, said.depth, said.text, said.holders) == ((2,), 1, "<|end|>é", ("ada",))
    assert (other.depth, other.text, str(other)) == (1, "no", "1 block, 2 tokens, cached")
    assert "  'Hi <b>' (2 blocks, 6 tokens, held by ada)\n    '<|end|>é'" in repr(shown)
    html = shown._repr_html_()
    assert "Hi &lt;b&gt;" in html and "<b>" not in html and "held by ada" in html


def test_a_change_of_holders_parts_a_stretch():
    chain = PrefixNode(0, (1,), 2, (PrefixNode(1, (2,), 1, (PrefixNode(2, (3,), 1),)),))
    blocks = [
        BlockView(0, "shared", 2, True, ("a/1", "b/1")),
        *(BlockView(i, "used", 1, True, ("a/1",)) for i in (1, 2)),
    ]
    ((_, stretches),) = lab.prefix_tree(explanation(blocks=blocks, roots=[(Scope("lm", "", b""), (chain,))])).roots
    assert [(s.blocks, s.text, s.holders) for s in stretches] == [((0,), "1", ("a", "b")), ((1, 2), "2 3", ("a",))]


def test_a_tree_may_be_deep_long_or_empty():
    node = PrefixNode(4000, tuple(range(20)), 0)
    for i in reversed(range(4000)):
        node = PrefixNode(i, (i,), 0, (node, PrefixNode(5000 + i, (7,), 0)))
    shown = lab.prefix_tree(explanation(roots=[(Scope("lm", "", b""), (node,))]))
    assert len(shown.roots[0][1]) == 8001 and repr(shown).endswith("… 7962 more")
    assert shown._repr_html_().count("<code") == engine_prefixes._LINES - 1
    assert repr(lab.prefix_tree(explanation())) == "PrefixText(nothing cached)"
    with pytest.raises(InvalidInputError, match="text models"):
        lab.prefix_tree(explanation(), "SmolLM2")


def test_metrics_of_all_kinds_stand_in_one_table():
    metrics = EngineMetrics()
    metrics.preemptions.add(3, "lm")
    metrics.running.set(2, "lm")
    metrics.ended.add(4, "lm", "stop")
    metrics.step_s.observe(0.02, "lm")
    metrics.step_s.observe(0.04, "other")
    table = lab.metrics_table(metrics)
    assert list(table["model"]) == ["lm"] * 4 + ["other"]
    rows = table[table["model"] == "lm"].set_index("metric")
    assert rows.loc["num_preemptions_total", "value"] == 3
    assert rows.loc["num_requests_running", "value"] == 2
    assert rows.loc["request_success_total stop", "value"] == 4
    assert rows.loc["step_time_seconds", ["count", "mean"]].tolist() == [1, 0.02]
    assert list(lab.metrics_table(metrics, model="other")["metric"]) == ["step_time_seconds"]
    assert lab.metrics_table(EngineMetrics()).empty

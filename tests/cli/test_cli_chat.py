"""`izwi-lab chat`: one answer, a conversation, commands, interrupts."""

import builtins

from izwi_lab.errors import InvalidInputError
from izwi_lab.results import ChatReply, TextDelta


def turns(world):
    return [[(m["role"], m["content"]) for m in messages] for _, messages, _ in world.calls]


def test_message_from_standard_input(run, world):
    assert run("chat", "-", stdin=b"What is this?\n").code == 0
    assert turns(world) == [[("user", "What is this?\n")]]


def test_conversation_keeps_its_turns(run, world):
    world.deltas = [["One", "."], ["Two", "."], ["Three."]]
    result = run("chat", "--system", "Count.", stdin=b"a\n\nb\n/clear\nc\n/quit\nnever\n")
    assert result.code == 0
    assert result.out == "One.\nTwo.\nThree.\n"
    assert turns(world) == [
        [("system", "Count."), ("user", "a")],
        [("system", "Count."), ("user", "a"), ("assistant", "One."), ("user", "b")],
        [("system", "Count."), ("user", "c")],
    ]
    assert "Forgotten." in result.err and len(world.engines) == 1


def test_commands(run, world):
    for leave in (b"/quit\n", b"/exit\n", b"/q\n", b""):
        result = run("chat", stdin=b"/help\n/nonsense now\n" + leave)
        assert result.code == 0 and world.calls == []
        assert "There is no command /nonsense." in result.err
        assert result.err.count("/clear forgets") == 3


def test_prompt_at_a_terminal(run, world, monkeypatch):
    lines = iter(["Hello", "/quit"])
    prompts = []
    monkeypatch.setattr(builtins, "input", lambda prompt: prompts.append(prompt) or next(lines))
    assert run("chat", tty=True).code == 0
    assert prompts == ["> ", "> "] and turns(world) == [[("user", "Hello")]]


def test_ctrl_d_leaves_and_ctrl_c_at_the_prompt_is_130(run, monkeypatch):
    for error, code in ((EOFError, 0), (KeyboardInterrupt, 130)):

        def refuse(prompt, error=error):
            raise error

        monkeypatch.setattr(builtins, "input", refuse)
        assert run("chat", tty=True).code == code


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(run, world):
    world.deltas = [["Half an", KeyboardInterrupt()], ["Whole."]]
    result = run("chat", stdin=b"a\nb\n")
    assert result.code == 0 and result.out == "Half an\nWhole.\n" and "Stopped." in result.err
    assert turns(world)[1] == [("user", "a"), ("assistant", "Half an"), ("user", "b")]


def test_ctrl_c_in_a_single_answer_is_130(run, world):
    world.deltas = [["Half an", KeyboardInterrupt()]]
    result = run("chat", "a")
    assert result.code == 130 and result.out == "Half an\n" and world.stream.closed


def test_a_failed_turn_is_forgotten(run, world):
    world.deltas = [["x", InvalidInputError("The conversation is too long.")], ["Fine."]]
    result = run("chat", stdin=b"a\nb\n")
    assert result.code == 0 and "izwi-lab chat: The conversation is too long." in result.err
    assert turns(world)[1] == [("user", "b")]


def test_cut_off_answers_say_so(run, world):
    world.reply = ChatReply("Blue", "length", (1,), "m", "b")
    for mode in ((), ("--no-stream",)):
        assert "cut off at --max-tokens 5" in run("chat", "a", "--max-tokens", "5", *mode).err


def test_sampling_that_would_do_nothing_is_refused(run, world):
    for argv, message in (
        (("--top-p", "0.9"), "no effect at temperature 0"),
        (("--temperature", "-1"), "0 or more"),
        (("--temperature", "1", "--top-p", "0"), "above 0"),
        (("--temperature", "1", "--top-p", "1.5"), "up to 1"),
        (("--top-k", "3"), "--top-k has no effect at temperature 0"),
        (("--min-p", "0.5"), "--min-p has no effect at temperature 0"),
        (("--temperature", "1", "--min-p", "2"), "from 0 to 1"),
    ):
        result = run("chat", "a", *argv)
        assert result.code == 1 and message in result.err
    assert world.calls == []


def test_thinking_is_asked_for_or_left_alone(run, world):
    for argv, thinking in ((("--think",), True), (("--no-think",), False), ((), None)):
        world.calls.clear()
        assert run("chat", "a", *argv).code == 0
        assert world.call[2].get("thinking") is thinking


def test_thoughts_go_to_stderr_and_not_into_the_conversation(run, world):
    thought = [TextDelta("", 0, reasoning="Let me "), TextDelta("", 1, reasoning="see."), "Blue", "."]
    world.deltas = [thought, ["Yes."]]
    result = run("chat", stdin=b"a\nb\n")
    assert result.out == "Blue.\nYes.\n"
    assert "<think>\nLet me see.\n</think>\n" in result.err
    assert turns(world)[1] == [("user", "a"), ("assistant", "Blue."), ("user", "b")]


def test_whole_answers_show_their_thoughts_too(run, world):
    world.reply = ChatReply("Blue", "stop", (1,), "m", "b", reasoning="Hm.")
    result = run("chat", "a", "--no-stream")
    assert result.out == "Blue\n" and "<think>\nHm.\n</think>" in result.err


def test_schema_files_are_read_before_anything_is_loaded(run, world, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    number = tmp_path / "number.json"
    number.write_text("3")
    for path, message in ((tmp_path / "none", "cannot be read"), (broken, "cannot be read"), (number, "no schema")):
        result = run("chat", "a", "--json-schema", path)
        assert result.code == 1 and message in result.err
    assert run("chat", "a", "--json", "--regex", "a").code == 2
    assert world.engines == []

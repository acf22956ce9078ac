"""Rows of the flag table: chat."""

from pathlib import Path

from flag_table import asked, flag

SCHEMA = str(Path(__file__).with_name("answer_schema.json"))

ASK = ("chat", "Why is the sky blue?")


@flag("chat", "message", *ASK)
def _(result, world):
    assert world.call[:2] == ("stream_chat", [{"role": "user", "content": "Why is the sky blue?"}])
    assert result.out == "Blue light.\n"
    assert world.stream.closed
    assert asked(world)["sampling"].temperature == 0


@flag("chat", "--model", *ASK, "--model", "Qwen3-0.6B")
def _(result, world):
    assert asked(world)["model"] == "Qwen3-0.6B"


@flag("chat", "--system", *ASK, "--system", "Be brief.")
def _(result, world):
    assert world.call[1][0] == {"role": "system", "content": "Be brief."}


@flag("chat", "--temperature", *ASK, "--temperature", "0.8")
def _(result, world):
    assert asked(world)["sampling"].temperature == 0.8


@flag("chat", "--top-p", *ASK, "--temperature", "0.8", "--top-p", "0.9")
def _(result, world):
    assert asked(world)["sampling"].top_p == 0.9


@flag("chat", "--max-tokens", *ASK, "--max-tokens", "12")
def _(result, world):
    assert asked(world)["max_tokens"] == 12


@flag("chat", "--seed", *ASK, "--seed", "3")
def _(result, world):
    assert asked(world)["seed"] == 3


@flag("chat", "--no-stream", *ASK, "--no-stream")
def _(result, world):
    assert world.call[0] == "chat"
    assert result.out == "Blue light.\n"


@flag("chat", "--backend", *ASK, "--backend", "cpu")
def _(result, world):
    assert world.engines[0].options["backend"] == "cpu"


@flag("chat", "--device", *ASK, "--device", "mps")
def _(result, world):
    assert world.engines[0].options["device"] == "mps"


@flag("chat", "--top-k", *ASK, "--temperature", "0.8", "--top-k", "40")
def _(result, world):
    assert asked(world)["sampling"].top_k == 40


@flag("chat", "--min-p", *ASK, "--temperature", "0.8", "--min-p", "0.1")
def _(result, world):
    assert asked(world)["sampling"].min_p == 0.1


@flag("chat", "--stop", *ASK, "--stop", "END", "--stop", "\n\n")
def _(result, world):
    assert asked(world)["stop"] == ("END", "\n\n")


@flag("chat", "--think", *ASK, "--think")
def _(result, world):
    assert asked(world)["thinking"] in (True, False)  # --no-think is another name of this flag


@flag("chat", "--json", *ASK, "--json")
def _(result, world):
    assert asked(world)["response_format"] == {"type": "json_object"}


@flag("chat", "--json-schema", *ASK, "--json-schema", SCHEMA)
def _(result, world):
    held = asked(world)["response_format"]
    assert held["type"] == "json_schema" and held["json_schema"]["schema"] == {"type": "integer"}


@flag("chat", "--regex", *ASK, "--regex", "[a-z]+")
def _(result, world):
    assert asked(world)["response_format"] == {"type": "regex", "regex": "[a-z]+"}


@flag("chat", "--truncation", *ASK, "--truncation", "oldest")
def _(result, world):
    assert asked(world)["truncation"] == "oldest"

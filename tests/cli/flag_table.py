"""The table of checked flags; rows are added with @flag in test_cli_flags.py and flag_rows_audio.py."""

import argparse
import importlib

FLAGS = {}


def flag(command, name, *argv):
    """Register the check of one flag. `argv` holds the flag by its first name; every other name is tried too."""

    def register(check):
        FLAGS[command, name] = (argv, check)
        return check

    return register


def options_of(parser):
    """Each option and argument of a parser and of its subcommands, as (dotted command, action)."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from ((f"{name} {rest}".strip(), a) for rest, a in options_of(child))
        elif not isinstance(action, argparse._HelpAction) and action.dest != "debug":
            yield "", action


def actions(command):
    """Every (subcommand, action) of a command."""
    module = importlib.import_module(f"izwi_lab.cli.commands.{command}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return list(options_of(parser))


def names_of(command, name):
    """All spellings of an option."""
    return next((a.option_strings for _, a in actions(command) if name in a.option_strings), [name])


def asked(world):
    return world.call[2]

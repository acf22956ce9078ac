"""The subcommands of `izwi-lab`: each module has `add_arguments(parser)` and `run(args) -> exit code`."""

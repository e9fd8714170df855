"""The command ``sparselsh``: train, predict, evaluate, convert, serve-bench and demo.

    main ─► parser ─► a command ─► the library

    _arguments  the parser: commands, options and their help
    _commands   main, and what each command does
    _files      files that commands read and write, and errors that name them
    _serving    commands for converted networks
    _measure    what a run costs, and how good its answers are
    _demo       the data of the demo: the source text of Python's standard library
"""
from ._commands import main

__all__ = ["main"]

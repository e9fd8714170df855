"""The command ``sparselsh``: train, predict, evaluate, convert, serve-bench and demo.



    main ─► parser ─► a command ─► the library

    _arguments  the parser: commands, options, help texts and defaults
    _commands   main, and what each command does
    _files      input and output files, and errors that name them
    _serving    commands that convert and time networks for inference
    _measure    time, memory and accuracy of a run
    _demo       the data of the demo: the source text of Python's standard library
"""
from ._commands import main

__all__ = ["main"]

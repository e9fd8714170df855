"""The command ``sparselsh``: train, predict, evaluate, convert, serve-bench and demo.

    main ─► parser ─► a command ─► the library

    _arguments   the parser: commands, options, help texts and defaults
    _commands    main, and which function does what
    _train       train: networks from options
    _predict     predict and evaluate; _stream: lines of a pipe
    _texts       train, predict and evaluate of texts; _records: their files
    _models      files of any kind; info, compress and serve
    _serving     convert and serve-bench, for inference
    _completion  completion of the command line in shells
    _files       input and output files, and errors that name them
    _measure     time, memory and accuracy of a run
    _report      figures as text
    _demo        the data of the demo: the source text of Python's standard library
"""
from ._commands import main

__all__ = ["main"]

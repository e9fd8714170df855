"""Seconds of an import, each in a process of its own."""


def timeraw_import():
    return "import sparselsh"


def timeraw_import_beyond_scipy():
    return "import sparselsh", "import numpy, scipy.sparse"


def timeraw_help():
    return "from sparselsh.cli._arguments import parser; parser()", "import sparselsh"

"""Processors for which the library is not built: they are refused in words, before it compiles."""
import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="of GCC for x86-64: -m32"),
    pytest.mark.skipif(
        not (shutil.which("gcc") and shutil.which("cython") and shutil.which("ninja")
             and importlib.util.find_spec("mesonbuild")),
        reason="needs gcc, meson, ninja and cython"),
]

# Meson compiles a file of Cython first, for which headers of a Python of 32 bits would be needed.
COMPILER = """#!/bin/sh
case "$*" in *sanity_check_for_cython*) exec gcc "$@" ;; esac
exec gcc {option} "$@"
"""
MACHINE = """
[binaries]
c = '{compiler}'
python = '{python}'
[properties]
needs_exe_wrapper = true
[host_machine]
system = 'linux'
cpu_family = '{family}'
cpu = '{family}'
endian = '{endian}'
"""


@pytest.mark.parametrize(("family", "endian", "option"), [
    ("s390x", "big", ""),
    ("x86", "little", "-m32"),
])
def test_big_endian_and_32_bits_are_refused_by_name(family, endian, option, tmp_path):
    compiler, machine = tmp_path / "cc", tmp_path / "cross.ini"
    compiler.write_text(COMPILER.format(option=option))
    compiler.chmod(0o755)
    machine.write_text(MACHINE.format(
        compiler=compiler, python=sys.executable, family=family, endian=endian))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mesonbuild.mesonmain", "setup", "--cross-file", machine,
         tmp_path / "build", ROOT], capture_output=True, text=True)
    assert done.returncode != 0
    assert ("sparselsh needs a little-endian processor with 64-bit addresses, "
            f"got {family}: files and sketches are read byte by byte") in done.stdout

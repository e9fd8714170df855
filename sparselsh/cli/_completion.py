"""Scripts that complete the command line in bash, zsh and fish, made from the parser."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._arguments import Parser


class Option(NamedTuple):
    """An option of a command, as a shell needs it."""

    names: list[str]
    choices: list[str]
    takes_value: bool
    text: str


class Command(NamedTuple):
    """A command, its options, and the choices of its arguments."""

    name: str
    text: str
    options: list[Option]
    choices: list[str]


def script(shell: str, parser: Parser) -> str:
    """The script for a shell, a line at a time."""
    commands = list(_commands(parser))
    return "\n".join({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands)) + "\n"


def _commands(parser: Parser) -> Iterator[Command]:
    for name, sub in parser.commands().items():
        options, choices = [], []
        for action in sub.arguments():
            known = [str(choice) for choice in action.choices or ()]
            if not action.option_strings:
                choices += known
                continue
            text = "" if action.help is None else action.help.split("; ")[0].split(" (default")[0]
            options.append(Option(list(action.option_strings), known, action.nargs != 0, text))
        yield Command(name, sub.text, options, choices)


def _words(command: Command) -> str:
    return " ".join(name for option in command.options for name in option.names)


def _bash(commands: list[Command]) -> Iterator[str]:
    names = " ".join(command.name for command in commands)
    yield "# sparselsh completion for bash: source <(sparselsh completion bash)"
    yield "_sparselsh() {"
    yield '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"'
    yield '    if [ "$COMP_CWORD" = 1 ]; then'
    yield f'        COMPREPLY=($(compgen -W "{names} --help --version" -- "$word")); return'
    yield "    fi"
    yield '    case "${COMP_WORDS[1]} $before" in'
    for command in commands:
        for option in command.options:
            if option.choices:
                patterns = "|".join(f'"{command.name} {name}"' for name in option.names)
                yield (f'        {patterns}) COMPREPLY=($(compgen -W "{" ".join(option.choices)}" '
                       '-- "$word")); return;;')
    yield "    esac"
    yield '    case "${COMP_WORDS[1]}" in'
    for command in commands:
        yield f"        {command.name})"
        yield '            if [[ "$word" == -* ]]; then'
        yield f'                COMPREPLY=($(compgen -W "{_words(command)}" -- "$word")); return'
        yield "            fi"
        if command.choices:
            yield (f'            COMPREPLY=($(compgen -W "{" ".join(command.choices)}" -- '
                   '"$word")); return;;')
        else:
            yield "            ;;"
    yield "    esac"
    yield '    COMPREPLY=($(compgen -f -- "$word"))'
    yield "}"
    yield "complete -o filenames -F _sparselsh sparselsh"


def _zsh(commands: list[Command]) -> Iterator[str]:
    yield "#compdef sparselsh"
    yield "# sparselsh completion for zsh: source <(sparselsh completion zsh), after compinit"
    yield "_sparselsh() {"
    yield "    local -a commands"
    yield "    commands=("
    for command in commands:
        yield f"        {_quoted(f'{command.name}:{command.text}')}"
    yield "    )"
    yield "    if (( CURRENT == 2 )); then _describe command commands; return; fi"
    yield "    local name=$words[2]; shift words; (( CURRENT-- ))"
    yield "    case $name in"
    for command in commands:
        yield f"        {command.name}) _arguments -s \\"
        for option in command.options:
            for name in option.names:
                text = option.text.replace("[", "(").replace("]", ")").replace(":", ",")
                after = ""
                if option.takes_value:
                    after = ":value:" + (f"({' '.join(option.choices)})" if option.choices
                                         else "_files")
                yield f"            {_quoted(f'{name}[{text}]{after}')} \\"
        rest = f"*:value:({' '.join(command.choices)})" if command.choices else "*:file:_files"
        yield f"            {_quoted(rest)};;"
    yield "    esac"
    yield "}"
    yield "compdef _sparselsh sparselsh"


def _fish(commands: list[Command]) -> Iterator[str]:
    yield "# sparselsh completion for fish: sparselsh completion fish | source"
    yield "complete -c sparselsh -e"
    for command in commands:
        yield (f"complete -c sparselsh -n __fish_use_subcommand -f -a {command.name} "
               f"-d {_quoted(command.text)}")
    for command in commands:
        when = f"-n '__fish_seen_subcommand_from {command.name}'"
        if command.choices:
            yield f"complete -c sparselsh {when} -f -a {_quoted(' '.join(command.choices))}"
        for option in command.options:
            flags = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
                             for name in option.names)
            value = " -r" if option.takes_value else ""
            if option.choices:
                value = f" -x -a {_quoted(' '.join(option.choices))}"
            yield f"complete -c sparselsh {when} {flags}{value} -d {_quoted(option.text)}"


def _quoted(text: str) -> str:
    """The text as one word of a shell."""
    return "'" + " ".join(text.replace("'", "").split()) + "'"

"""`kbc completion`: scripts for bash, zsh and fish, generated from the parsers themselves."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

HELP = "Print a completion script for your shell; it completes commands, options and choices."


@dataclass
class Words:
    """What may follow a command: its options (name → choices, or None for a flag) and positional choices."""

    options: dict[str, list[str] | None] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)
    help: dict[str, str] = field(default_factory=dict)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    print({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](collect()))
    return 0


def collect() -> dict[str, Words]:
    """Command path ("match", "data check") → its words, by walking every command's parser."""
    from kbc.cli import COMMANDS, command_parser

    found: dict[str, Words] = {}
    for name, command in COMMANDS.items():
        _walk(command_parser(name, command.load()), name, found)
    return found


def _walk(parser: argparse.ArgumentParser, path: str, found: dict[str, Words]) -> None:
    words = found.setdefault(path, Words())
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words.positional += list(action.choices)
            for name, child in action.choices.items():
                _walk(child, f"{path} {name}", found)
        elif action.option_strings:
            for option in action.option_strings:
                takes_value = action.nargs != 0
                words.options[option] = _values(action) if takes_value else None
                words.help[option] = (action.help or "").replace("%%", "%")
        else:
            words.positional += _values(action)


def _values(action: argparse.Action) -> list[str]:
    """What an option or a positional may be, where that is a short list; the matchers are those installed now."""
    from kbc.matchers.registry import available_matchers

    return available_matchers() if action.metavar == "NAME" else [str(choice) for choice in action.choices or []]


def bash(commands: dict[str, Words]) -> str:
    """A bash script: `complete -F`."""
    cases, values = [], []
    for path, words in commands.items():
        cases.append(f'    "{path}") words="{" ".join([*words.positional, *words.options])}" ;;')
        values += [
            f'    "{path} {option}") COMPREPLY=($(compgen -W "{" ".join(choices)}" -- "$word")); return ;;'
            for option, choices in words.options.items()
            if choices
        ]
    top = " ".join(path for path in commands if " " not in path)
    newline = "\n"
    return f"""# bash completion for kbc
_kbc() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" path="${{COMP_WORDS[1]}}" words
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{top} --help --version" -- "$word")); return; fi
  case "$path ${{COMP_WORDS[2]}}" in
{newline.join(f'    "{path}") [ "$COMP_CWORD" -gt 2 ] && path="{path}" ;;' for path in commands if " " in path)}
    *) ;;
  esac
  case "$path $previous" in
{newline.join(values)}
    *) ;;
  esac
  case "$path" in
{newline.join(cases)}
    *) ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o bashdefault -o default -F _kbc kbc"""


def zsh(commands: dict[str, Words]) -> str:
    """A zsh script: the bash one behind zsh's `bashcompinit`."""
    body = bash(commands).replace("# bash completion for kbc\n", "")
    return f"#compdef kbc\nautoload -U +X bashcompinit && bashcompinit\n{body}"


def fish(commands: dict[str, Words]) -> str:
    """A fish script: one `complete` per word."""
    from kbc.cli import COMMANDS

    lines = ["# fish completion for kbc"]
    for name, command in COMMANDS.items():
        lines.append(f"complete -c kbc -n __fish_use_subcommand -f -a {name} -d {_quoted(command.summary)}")
    for path, words in commands.items():
        condition = _quoted("; and ".join(f"__fish_seen_subcommand_from {part}" for part in path.split()))
        for word in words.positional:
            lines.append(f"complete -c kbc -n {condition} -a {_quoted(word)}")
        for option, choices in words.options.items():
            dashes = "-l" if option.startswith("--") else "-s"
            value = "" if choices is None else " -r" if not choices else f" -x -a {_quoted(' '.join(choices))}"
            lines.append(f"complete -c kbc -n {condition} {dashes} {option.lstrip('-')}{value} "
                         f"-d {_quoted(words.help[option])}")  # fmt: skip
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

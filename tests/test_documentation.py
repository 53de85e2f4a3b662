"""Files, commands, options and configs that the documentation mentions exist."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import agenet
from agenet.cli.app import COMMANDS
from configs import default
from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    *(ROOT / ".github").glob("*.md"),
    *(
        path
        for folder in ("agenet", "configs", "data_prep", "scripts")
        for path in sorted((ROOT / folder).rglob("*.md"))
    ),
]
# Of `agenet train` and python -m agenet.main, which are absl's flags and not Click's options.
TRAIN_FLAGS = {"--config", "--workdir", "--dry_run", "--profile", "--processes", "--help"}

BLOCK = re.compile(r"^```(?:sh|bash)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """Yields the words of each command in blocks of shell code and in `inline code`."""
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    for line in lines:
        for part in re.split(r"&&|;|\|", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # No command: a lone quotation mark, say.
                continue
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # Variables.
                del words[0]
            if words:
                yield [Path(words[0]).name, *words[1:]]


def mistake(program: str, words: list[str]) -> str:
    """Returns what is wrong with a command; nothing if it is right, or not one of agenet's."""
    first = words[0] if words else ""
    if program in ("python", "python3") and first.startswith("scripts/"):
        return "" if (ROOT / first).exists() else f"{first} does not exist"
    if program in ("python", "python3") and first == "-m" and words[1].startswith("agenet"):
        if words[1] == "agenet.main":
            return mistake_in_options("train", words[2:])
        return "" if importlib.util.find_spec(words[1]) else f"there is no module {words[1]}"
    if program == "pytest":
        files = [word.split("::")[0] for word in words if word.startswith("tests")]
        return "".join(f"{file} does not exist" for file in files if not (ROOT / file).exists())
    if program == "agenet" and first.isalpha() and first.islower():
        return mistake_in_options(first, words[1:])
    if program in ("agenet-predict", "agenet-webcam"):
        return f"there is no program {program}"
    return ""


def mistake_in_options(command: str, words: list[str]) -> str:
    if command not in COMMANDS:
        return f"there is no command {command}"
    known = TRAIN_FLAGS
    if command != "train":
        own_images = command == "prepare" and words[:1] == ["images"]
        module = "prepare_images" if own_images else command
        described = importlib.import_module(f"agenet.cli.{module}").command
        options = [(*option.opts, *option.secondary_opts) for option in described.params]
        known = {"-h", "--help"}.union(*options)
    for word in words:
        name, _, value = word.partition("=")
        value = value.split(":")[0]
        if name.startswith("--config."):
            if not has_field(name.removeprefix("--config.")):
                return f"configs have no field {name}"
        elif re.match("--?[a-z]", name) and name not in known:
            return f"agenet {command} has no option {name}"
        elif name in ("--config", "--sweep") and command != "prepare" and not value.isupper():
            folder = ROOT / "configs" / ("sweeps" if name == "--sweep" else "")
            if value and not (folder / f"{value}.py").exists() and not (ROOT / value).is_file():
                return f"there is no config {value}"
    return ""


def has_field(name: str) -> bool:
    place = default.get_config()
    for part in name.split("."):
        if part.isupper():  # FIELD, in the place of any.
            return True
        if part not in place:
            return False
        place = place[part]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_mentions_exists(page: Path) -> None:
    text = page.read_text()
    mistakes = []
    for program, *words in commands(text):
        if found := mistake(program, words):
            mistakes.append(f"{found}: {shlex.join([program, *words])}")
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text)):
        path = target.split("#")[0]
        if path and "://" not in path and not (page.parent / path).exists():
            mistakes.append(f"a link leads nowhere: {target}")
    assert not mistakes, "\n".join(mistakes)


def test_mistakes_are_found() -> None:
    for line, expected in (
        ("agenet trian --config=quickstart", "no command trian"),
        ("agenet train --config=quikstart", "no config quikstart"),
        ("agenet train --config.sed=1", "no field"),
        ("agenet predict --what x.jpg", "no option --what"),
        ("python scripts/gone.py", "does not exist"),
        ("pytest tests/test_gone.py", "does not exist"),
        ("AGENET_OFFLINE=1 .venv/bin/agenet predict photo.jpg --csv=faces.csv", ""),
        ("agenet train --config=configs/effnet_adience.py:lite0 --workdir=runs/x", ""),
    ):
        ((program, *words),) = commands(f"```sh\n{line}\n```")
        found = mistake(program, words)
        assert expected in found and bool(expected) == bool(found), found


def test_citation_is_of_this_version() -> None:
    assert f"\nversion: {agenet.__version__}\n" in (ROOT / "CITATION.cff").read_text()

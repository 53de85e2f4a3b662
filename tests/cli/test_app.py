"""The command line as a whole: help that comes at once, completion, and one line for a mistake."""

import re
import tomllib
from pathlib import Path

import click
import pytest

from agenet.cli.app import COMMANDS, group, run_command
from agenet.errors import EXTRAS, UserError
from agenet.faces.encoding import CODECS
from agenet.faces.image_io import FORMATS, FULL_SIZE_PIXELS
from agenet.frameworks.comparison import compare
from agenet.frameworks.comparison.engines import ENGINES
from agenet.frameworks.targets import TARGETS
from agenet.inference import export, export_faces
from tests.conftest import ROOT, run_program

HEAVY = {
    "av",
    "jax",
    "flax",
    "numpy",
    "cv2",
    "matplotlib",
    "onnxruntime",
    "tensorflow",
    "torch",
    "keras",
}


def imported_by(*arguments: str) -> set[str]:
    """The top-level modules that a call of `agenet` has imported when it exits."""
    code = (
        "import sys; from agenet.cli import main\n"
        f"sys.argv[1:] = {list(arguments)}\n"
        "try: main()\n"
        "finally: print(*{name.split('.')[0] for name in sys.modules})"
    )
    return set(run_program("-c", code).splitlines()[-1].split())


def help_of(name: str) -> str:
    with click.Context(group, info_name="agenet", **group.context_settings) as context:
        command = group.get_command(context, name)
        assert command is not None
        with click.Context(command, parent=context, info_name=name) as own:
            return command.get_help(own)


@pytest.mark.parametrize("name", ["", *(name for name in COMMANDS if name != "train")])
def test_help_imports_nothing_heavy(name: str) -> None:
    assert not HEAVY & imported_by(*filter(None, [name]), "--help")


def test_training_help_does_not_import_jax() -> None:
    code = (
        "import sys; from agenet.cli import main\n"
        "sys.argv[1:] = ['train', '--help']\n"
        "try: main()\n"
        "except SystemExit: print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = set(run_program("-c", code, GLIBC_TUNABLES="").splitlines()[-1].split())
    assert "absl" in loaded
    assert not {"jax", "flax", "matplotlib", "tensorflow"} & loaded


def test_importing_agenet_is_light() -> None:
    code = "import sys, agenet; print(*{name.split('.')[0] for name in sys.modules})"
    assert not HEAVY & set(run_program("-c", code).split())


def test_all_help() -> None:
    printed = run_program("-m", "agenet.cli")
    assert printed == run_program("-m", "agenet.cli", "-h")
    for name in COMMANDS:
        (line,) = re.findall(rf"^  {name} +(\S.*)$", printed, re.M)
        assert line.endswith(".") and not line.endswith("...")
        text = help_of(name)
        assert text.startswith(f"Usage: agenet {name} ")
        assert max(map(len, text.splitlines())) <= 80
    assert run_program("-m", "agenet.cli", "--version").startswith("agenet ")


def test_help_states_what_the_code_does() -> None:
    predict = help_of("predict").replace("\n", " ")
    assert all(ending in predict for ending in FORMATS)
    assert f"more than {FULL_SIZE_PIXELS // 10**6} million" in re.sub(r"\s+", " ", predict)
    assert all(ending in help_of("webcam") for ending in CODECS)
    targets = re.sub(r".*--to \[([a-z|]+)\].*", r"\1", help_of("port"), flags=re.S).split("|")
    assert sorted(targets) == sorted(TARGETS)
    compared = help_of("compare")
    assert ",".join(compare.PARTS) in compared and ",".join(ENGINES) in compared
    assert "|".join(compare.SCALES) in compared
    exported = help_of("export")
    assert "[" + "|".join(export.FORMATS) + "]" in exported
    assert f"{export.LOST_POINTS} points" in exported
    assert f"{export_faces.MAX_CHECKED:,}" in exported


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no command trian: did you mean train?"),
        (
            ["--verison"],
            "there is no option --verison: did you mean --version? (see agenet --help)",
        ),
        (["port", "--lsit"], "there is no option --lsit: did you mean --list? (see agenet port -"),
        (["export", "a"], "missing argument 'OUTPUT', see agenet export --help"),
        (["port", "a"], "SOURCE and OUTPUT are needed, see agenet port --help"),
        (["report"], "missing argument 'RUN...', see agenet report --help"),
        (["evaluate", "--workdir=x", "y"], "got unexpected extra argument (y), see agenet eval"),
        (["compare", "--out=x", "--scale=y"], "'y' is not one of 'laptop', 'report'"),
        (["folds", "--workdir=x"], "missing option '--config', see agenet folds --help"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        run_command(arguments)
    assert "\n" not in str(caught.value)


def test_a_mistake_is_one_line() -> None:
    printed = run_program("-m", "agenet.cli", "pridect", fails=True)
    assert printed == "error: there is no command pridect: did you mean predict?\n"


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("we", {"webcam"}),
        ("prepare dr", {"drawn_faces"}),
        ("prepare --man", {"--manual_dir"}),
        ("train --config qui", {"quickstart"}),
        ("train --dry", {"--dry_run"}),
        ("folds --config effnet_a", {"effnet_adience", "effnet_adience_unfrozen"}),
        ("sweep --sweep age", {"age_heads"}),
        ("export --format st", {"stablehlo"}),
    ],
)
def test_completion(typed: str, completed: set[str]) -> None:
    printed = run_program(
        "-m",
        "agenet.cli",
        _AGENET_COMPLETE="bash_complete",
        COMP_WORDS=f"agenet {typed}",
        COMP_CWORD=str(len(typed.split())),
    )
    assert {line.partition(",")[2] for line in printed.splitlines()} == completed


def test_completion_is_installed_as_the_help_says() -> None:
    printed = run_program("-m", "agenet.cli", "--help")
    assert '_AGENET_COMPLETE=bash_source agenet)"' in printed
    script = run_program("-m", "agenet.cli", _AGENET_COMPLETE="zsh_source")
    assert "#compdef agenet" in script


@pytest.mark.parametrize("arguments", [["--help"], ["--config=quickstrat.py", "--workdir=x"]])
def test_train_is_agenet_main(arguments: list[str]) -> None:
    # absl ends with an exit code of 1 after --help.
    expected = run_program("-m", "agenet.main", *arguments, fails=True)
    wrong = arguments != ["--help"]
    assert run_program("-m", "agenet.cli", "train", *arguments, fails=wrong) == expected


# A missing extra is one line.


MODULES = {"dlib-bin": "dlib", "mlflow-skinny": "mlflow"}


def test_extras_are_those_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for extra, packages in EXTRAS.items():
        names = {re.split(r"[\[<>=]", line)[0] for line in extras[extra]} - {"agenet-faces"}
        modules = {MODULES.get(name, name.replace("-", "_")) for name in names}
        assert modules == set(packages)


@pytest.mark.parametrize(
    ("hidden", "arguments", "extra"),
    [
        ("matplotlib", ["train", "--config=configs/quickstart.py", "--workdir=DIR"], "train"),
        ("array_record", ["train", "--config=configs/quickstart.py", "--workdir=DIR"], "train"),
        ("clu", ["train", "--config=configs/quickstart.py", "--workdir=DIR"], "train"),
        ("matplotlib", ["evaluate", "--workdir=DIR"], "train"),
        ("array_record", ["evaluate", "--workdir=DIR"], "train"),
        ("jinja2", ["evaluate", "--table=DIR/faces.csv"], "train"),
        ("matplotlib", ["report", "DIR", "OTHER"], "train"),
        ("matplotlib", ["folds", "--config=configs/quickstart.py", "--workdir=DIR"], "train"),
        ("clu", ["sweep", "--sweep=report", "--workdir=DIR"], "train"),
        ("optuna", ["sweep", "--sweep=heads", "--workdir=DIR"], "search"),
        ("tensorflow_datasets", ["prepare", "drawn_faces", "--data_dir=DIR"], "train"),
        ("array_record", ["prepare", "drawn_faces", "--data_dir=DIR"], "train"),
        ("dlib", ["webcam", "FILM", "--json=-", "--detector=hog"], "webcam"),
    ],
)
def test_missing_extra(tmp_path: Path, hidden: str, arguments: list[str], extra: str) -> None:
    film = tmp_path / "film.gif"
    film.write_bytes(GIF)
    arguments = [a.replace("DIR", str(tmp_path)).replace("FILM", str(film)) for a in arguments]
    code = (
        f"import sys; sys.modules[{hidden!r}] = None\n"
        "from agenet.cli import main\n"
        f"sys.argv[1:] = {arguments}; main()"
    )
    # Set, so that training does not start its process anew and forget what is hidden.
    printed = run_program("-c", code, fails=True, GLIBC_TUNABLES="glibc.malloc.hugetlb=1")
    assert printed.count("\n") == 1
    assert re.match(rf'error: .*needs the extra "{extra}" \(', printed)
    assert f'pip install -e ".[{extra}]" in a clone' in printed


@pytest.mark.parametrize(
    "arguments", [["export", "default", "OUT.onnx"], ["port", "default", "OUT.safetensors"]]
)
def test_no_extra_is_needed(tmp_path: Path, arguments: list[str]) -> None:
    arguments = [a.replace("OUT", str(tmp_path / "out")) for a in arguments]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sum(EXTRAS.values(), ())}))\n"
        "from agenet.cli import main\n"
        f"sys.argv[1:] = {arguments}; main()"
    )
    assert "  written  " in run_program("-c", code)


# One grey pixel.
GIF = bytes.fromhex("474946383961010001008000007f7f7f0000002c000000000100010000020144003b")


def test_no_message_installs_from_the_index() -> None:
    """The name agenet belongs to another project there."""
    wrong = re.compile(r"pip install [\"']?agenet\b(?!-faces==)|[\"'\s]agenet\[")
    for folder in ("agenet", "configs", "data_prep", "scripts"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md") and (found := wrong.search(path.read_text())):
                pytest.fail(f"{path.relative_to(ROOT)}: {found[0]}")

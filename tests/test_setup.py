"""`make setup`: the Python it chooses, the order of its steps, and what it does where uv cannot help."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "make", "awk", "cat", "cp", "env", "mktemp", "rm", "touch")

# An interpreter that notes its calls. Asked for a venv it makes a folder that holds itself; asked for uv it makes a uv
# that notes its calls too. Calls that contain $FAIL fail.
STUB = """
import os, shutil, sys, sysconfig

def call(words):
    with open(CALLS, "a") as calls:
        calls.write(" ".join(words) + "\\n")
    if os.environ["FAIL"] in " ".join(words):
        sys.exit(words[0] + " is broken on purpose")

name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if words[0] == "-c":
    sys.version_info, sysconfig.get_path = (*VERSION, 0, "final", 0), lambda name: HEADERS
    sys.modules.update(dict.fromkeys(WITHOUT))
    exec(words[1])
elif words == ["-V"]:
    print("Python %d.%d.0" % VERSION)
else:
    call([name, *words])
    if words[:2] == ["-m", "venv"]:
        os.makedirs(words[-1] + "/bin", exist_ok=True)
        shutil.copy(sys.argv[0], words[-1] + "/bin/python")
    elif words[-1].endswith("uv.txt"):
        shutil.copy(sys.argv[0], os.path.dirname(sys.argv[0]) + "/uv")
"""


class Checkout:
    """A folder with our Makefile, and a PATH that holds nothing but a few tools and stubs."""

    def __init__(self, root: Path):
        self.root, self.bin, self._calls = root / "checkout", root / "bin", root / "calls"
        self.bin.mkdir()
        shutil.copytree(ROOT / ".ci", self.root / ".ci")
        for name in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, self.root / name)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.add_command("id", "#!/usr/bin/env bash\necho 1000\n")

    def add_python(self, name, version, without=()):
        """An interpreter that calls itself `version` and lacks modules; its headers lie beside its command."""
        facts = {"VERSION": version, "WITHOUT": without, "HEADERS": str(self.bin), "CALLS": str(self._calls)}
        settings = "".join(f"{key} = {value!r}\n" for key, value in facts.items())
        self.add_command(name, f"#!{sys.executable} -S\n{settings}{STUB}")

    def add_compiler(self):
        self.add_command("c++", "")
        (self.bin / "Python.h").touch()

    def add_command(self, name, text):
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, *command, fail="nothing", **variables):
        environment = {"PATH": str(self.bin), "FAIL": fail, **variables}
        return subprocess.run(command, check=False, cwd=self.root, env=environment, capture_output=True, text=True)

    def calls(self):
        """The words of all calls so far, with folders left out."""
        return re.sub(r"\S+/", "", self._calls.read_text()).splitlines() if self._calls.exists() else []


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


BRING_UV = "python -m pip install --quiet --require-hashes --no-deps -r uv.txt"
WITH_UV = (
    "uv pip install --quiet --python python --require-hashes --no-deps"
    " --build-constraints requirements.lock -r requirements.lock"
)
WITH_PIP = "python -m pip install --quiet --require-hashes --no-deps -r requirements.lock"
PROJECT = "python -m pip install --quiet --no-deps --no-build-isolation -e ."


def test_the_newest_usable_python_is_taken(checkout):
    """Shims of versions that are not installed, and a Python without ensurepip, are passed over."""
    checkout.add_command(
        "python3.13", f"#!{shutil.which('bash')}\necho 'python3.13: command not found' >&2\nexit 127\n"
    )
    checkout.add_python("python3.12", (3, 12), without=["ensurepip"])
    checkout.add_python("python3.11", (3, 11))
    assert checkout.run(".ci/find-python").stdout == f"{checkout.bin}/python3.11\n"
    checkout.add_python("python3.12", (3, 12))
    assert checkout.run(".ci/find-python").stdout == f"{checkout.bin}/python3.12\n"


def test_plain_python3_is_taken_if_its_version_fits(checkout):
    """Debian calls its only Python python3 as well."""
    checkout.add_python("python3", (3, 12))
    assert checkout.run(".ci/find-python").stdout == f"{checkout.bin}/python3\n"


def test_python_3_13_needs_a_compiler(checkout):
    """tinysoundfont has no wheel for it; found out before gigabytes are downloaded."""
    checkout.add_python("python3.13", (3, 13))
    refused = checkout.run("make", "setup")
    assert refused.returncode == 2
    assert "python3.13 lacks Debian packages: apt-get install g++ python3.13-dev" in refused.stderr
    checkout.add_compiler()
    assert checkout.run(".ci/find-python").stdout == f"{checkout.bin}/python3.13\n"


def test_root_gets_what_debian_packs_apart(checkout):
    """A fresh Debian has Python without venv; its packages are installed and named, and setup goes on."""
    checkout.add_python("whole", (3, 13))
    checkout.add_python("python3.13", (3, 13), without=["ensurepip"])
    apt = f"echo apt-get $* >>{checkout.bin}/../calls\ncp {checkout.bin}/whole {checkout.bin}/python3.13"
    checkout.add_command("apt-get", f"#!/usr/bin/env bash\n{apt}\n")
    refused = checkout.run("make", "setup")
    assert "apt-get install python3.13-venv g++ python3.13-dev; looked for" in refused.stderr
    assert checkout.calls() == []
    checkout.add_command("id", "#!/usr/bin/env bash\necho 0\n")
    checkout.add_command("c++", "")
    (checkout.bin / "Python.h").touch()
    done = checkout.run("make", "setup")
    assert done.returncode == 0, done.stderr
    assert "installing python3.13-venv from Debian" in done.stderr
    assert checkout.calls()[:3] == [
        "apt-get update -qq",
        "apt-get install -y -qq --no-install-recommends python3.13-venv",
        "python3.13 -m venv --clear .venv",
    ]


def test_what_the_installation_does_not_mend_is_said_once(checkout):
    """If the packages are there and the Python is still refused, the sentence comes and nothing loops."""
    checkout.add_python("python3.13", (3, 13), without=["ensurepip"])
    checkout.add_compiler()
    checkout.add_command("id", "#!/usr/bin/env bash\necho 0\n")
    checkout.add_command("apt-get", f"#!/usr/bin/env bash\necho apt-get $* >>{checkout.bin}/../calls\n")
    refused = checkout.run("make", "setup")
    assert refused.returncode == 2
    assert "error: no usable Python 3.11 to 3.13 (python3.13 lacks Debian packages" in refused.stderr
    assert len(checkout.calls()) == 2


def test_no_python_is_one_sentence(checkout):
    """It says what was looked for, why each was refused, and what to install."""
    none = checkout.run("make", "setup")
    assert none.returncode == 2
    assert none.stderr.splitlines()[0] == (
        "error: no usable Python 3.11 to 3.13 (not on PATH; looked for python3.13, python3.12, python3.11, python3);"
        " install one, or name it: make PYTHON=/path/to/python3.13"
    )
    checkout.add_python("python3.12", (3, 12), without=["ensurepip"])
    checkout.add_python("python3", (3, 14))
    refused = checkout.run("make", "setup").stderr
    assert (
        "(python3.12 lacks Debian packages: apt-get install python3.12-venv; python3 is Python 3.14; looked for"
        in refused
    )
    assert checkout.calls() == []


def test_a_named_python_is_taken_or_refused(checkout):
    """PYTHON=... goes before PATH, as an argument of make and as a variable; nothing replaces it."""
    checkout.add_python("python3.12", (3, 12))
    checkout.add_python("mine", (3, 11))
    assert "venv of Python 3.11.0 " in checkout.run("make", "setup", "PYTHON=mine").stdout
    assert "venv of Python 3.11.0 " in checkout.run("make", "-B", "setup", PYTHON="mine").stdout
    refused = checkout.run("make", "-B", "setup", "PYTHON=theirs")
    assert "(not on PATH; looked for theirs)" in refused.stderr


def test_setup_installs_the_lock_and_then_the_project(checkout):
    """Four steps, a line with its seconds each, and nothing else is printed."""
    checkout.add_python("python3.12", (3, 12))
    done = checkout.run("make", "setup")
    assert done.returncode == 0, done.stderr
    assert checkout.calls() == ["python3.12 -m venv --clear .venv", BRING_UV, WITH_UV, PROJECT]
    assert [re.sub(r" \d+ s$", " N s", line) for line in done.stdout.splitlines()] == [
        "venv of Python 3.12.0 in .venv ... N s",
        "uv ... N s",
        "packages ... N s",
        "project ... N s",
    ]
    assert done.stderr == ""
    brought = (checkout.root / ".venv/uv.txt").read_text()
    assert brought.startswith("uv==")
    assert brought.count("==") == 1


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements.lock"])
def test_setup_runs_again_only_when_something_changed(checkout, changed):
    """The venv is kept, unless another Python is asked for."""
    checkout.add_python("python3.12", (3, 12))
    installed = ("make", ".venv/.installed")  # what demo, test and lint depend on
    checkout.run(*installed)
    first = checkout.calls()
    assert checkout.run(*installed).stdout == "make: '.venv/.installed' is up to date.\n"
    assert checkout.calls() == first
    os.utime(checkout.root / changed, (2**32, 2**32))
    checkout.run(*installed)
    assert checkout.calls()[len(first) :] == ["python -m pip --version", BRING_UV, WITH_UV, PROJECT]
    checkout.add_python("python3.13", (3, 13))
    checkout.add_compiler()
    checkout.run("make", "setup")
    assert "python3.13 -m venv --clear .venv" in checkout.calls()


def test_asked_for_by_name_setup_always_looks(checkout):
    """It is the remedy of the doctor; so is another PYTHON, whatever the target."""
    checkout.add_python("python3.12", (3, 12))
    checkout.add_python("mine", (3, 11))
    checkout.run("make", "setup")
    first = checkout.calls()
    checkout.run("make", "setup")
    assert checkout.calls()[len(first) :] == ["python -m pip --version", BRING_UV, WITH_UV, PROJECT]
    assert "venv of Python 3.11.0 " in checkout.run("make", ".venv/.installed", "PYTHON=mine").stdout


@pytest.mark.parametrize(
    "broken, says", [("uv pip", "uv is broken on purpose"), ("uv.txt", "python is broken on purpose")]
)
def test_pip_installs_the_same_lock_where_uv_cannot(checkout, broken, says):
    """uv that fails, or does not come, costs minutes and nothing else; what it said is shown."""
    checkout.add_python("python3.12", (3, 12))
    done = checkout.run("make", "setup", fail=broken)
    assert done.returncode == 0
    assert checkout.calls()[-2:] == [WITH_PIP, PROJECT]
    assert says in done.stderr
    assert "plain pip installs the same packages, in minutes" in done.stderr
    assert re.search(r"failed after \d+ s\n(.*\n)*packages with pip \.\.\. \d+ s\n", done.stdout)


def test_what_pip_cannot_install_either_ends_setup(checkout):
    """make fails with pip's words, and the next call tries again."""
    checkout.add_python("python3.12", (3, 12))
    failed = checkout.run("make", "setup", fail="requirements.lock")
    assert failed.returncode == 2
    assert failed.stderr.count("is broken on purpose") == 2
    assert PROJECT not in checkout.calls()
    assert checkout.run("make", "setup").returncode == 0


def write_wheel(folder):
    """A wheel of one module, without any tool; returns its sha256."""
    path = folder / "lonely-1.0-py3-none-any.whl"
    info = "lonely-1.0.dist-info"
    with ZipFile(path, "w") as wheel:
        wheel.writestr("lonely.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: lonely\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_real_pip_takes_the_lock_and_refuses_a_changed_package(checkout):
    """The fallback with a real venv and a real pip, offline: the hash decides what is installed."""
    digest = write_wheel(checkout.bin)
    lock = checkout.root / "requirements.lock"
    offline = {
        "PYTHON": str(Path(sys.base_prefix) / "bin" / f"python{sysconfig.get_python_version()}"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(checkout.bin),
        "PIP_CONFIG_FILE": os.devnull,
    }
    lock.write_text(f"lonely==1.0 ; python_version >= '3.11' \\\n    --hash=sha256:{digest}\n")
    checkout.add_compiler()
    done = checkout.run(".ci/setup", ".venv", "venv", "uv", "packages", **offline)
    assert done.returncode == 0, done.stderr
    assert "requirements.lock holds no uv" in done.stderr
    installed = subprocess.run([checkout.root / ".venv/bin/python", "-c", "import lonely"], check=False)
    assert installed.returncode == 0
    lock.write_text(lock.read_text().replace(digest, "0" * 64))
    shutil.rmtree(checkout.root / ".venv")
    refused = checkout.run(".ci/setup", ".venv", "venv", "uv", "packages", **offline)
    assert refused.returncode == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in refused.stderr

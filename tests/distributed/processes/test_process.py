"""The end of a process keeps its exit code; freed memory is used again unless the user has set the allocator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENDING = """
import atexit, threading, time
from distributed.processes.process import end_process
threading.Thread(target=time.sleep, args=(3600,)).start()
atexit.register(print, "done at the exit")
print("the last words", end=" ")
end_process(85)
"""


def test_the_exit_code_and_the_last_words_arrive():
    """What was printed and what was registered comes out, a thread that never ends is not waited for."""
    done = subprocess.run([sys.executable, "-c", ENDING], check=False, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (85, "the last words done at the exit\n", "")


CRASH = """
import sys, threading, time
from distributed.processes.process import end_with
threading.Thread(target=time.sleep, args=(3600,)).start()
def main():
    raise {error}
end_with(main)
"""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("KeyError('a bug')", 1, "KeyError: 'a bug'\n"),
        ("SystemExit(141)", 141, ""),
        ("SystemExit('no room')", 1, "SystemExit: no room\n"),
    ],
)
def test_an_uncaught_error_ends_the_process(error, code, said):
    """With its traceback, at once: threads and data workers that never end are not waited for."""
    run = [sys.executable, "-c", CRASH.format(error=error)]
    done = subprocess.run(run, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == code
    assert done.stderr.endswith(said)
    assert ("Traceback" in done.stderr) is (code == 1)


def test_lost_output_does_not_change_the_exit_code():
    """A training that is saved ends with 85 even if its log goes to a full disk."""
    code = "import sys; from distributed.processes.process import end_process; "
    code += "sys.stdout.write('unread'); end_process(85)"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = [sys.executable, "-c", code]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(run, check=False, env=buffered, stdout=full, stderr=full, timeout=600)
    assert done.returncode == 85


LAUNCHED = """
import os, sys
if len(sys.argv) > 1:
    os.getppid = lambda: 1
from distributed.processes.process import die_with_launcher
die_with_launcher({"TORCHELASTIC_RUN_ID": "x"})
print("alive", os.getppid())
"""


def test_a_launcher_may_be_the_first_process():
    """torchrun as process 1 of a container: its ranks are no orphans. Played where namespaces are allowed."""
    alone = ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "-p", "-f", "sh", "-c", '"$@"; exit $?', "sh"]
    allowed = subprocess.run([*alone, "true"], check=False, capture_output=True).returncode == 0
    command = [*alone, sys.executable, "-c", LAUNCHED] if allowed else [sys.executable, "-c", LAUNCHED, "pretend"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "alive 1\n"), done.stderr


ROUNDS = """
import os, resource, sys
from distributed.processes.process import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory(os.environ)
def touch():
    block = b"x" * (64 << 20)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how, **environ):
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, how], env=os.environ | environ, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return bool(int(kept)), int(faults)


def test_a_block_that_was_freed_costs_no_new_pages():
    """Of 64 MiB, four times: with 4 KiB pages 65,536 faults, with huge ones 128."""
    _, as_usual = page_faults("as usual")
    kept, faults = page_faults("keep")
    assert kept
    assert as_usual >= 100
    assert faults < as_usual / 10


def test_what_the_user_has_set_stays():
    """MALLOC_* and GLIBC_TUNABLES of the environment are somebody's decision."""
    kept, faults = page_faults("keep", MALLOC_MMAP_THRESHOLD_="65536")
    assert not kept
    assert faults >= 100

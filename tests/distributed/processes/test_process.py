"""The end of a process keeps its exit code; freed memory is used again unless the user has set the allocator."""

import os
import subprocess
import sys

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

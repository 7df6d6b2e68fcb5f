"""A process that is done ends with its own exit code, whatever threads still run."""

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

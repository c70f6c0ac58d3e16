"""`gridjax federate` in a process that kills itself when it has written so many rows of rounds.csv."""

import os
import signal
import sys

from algorithms import checkpoints
from federated import display
from gridjax.__main__ import main

if __name__ == "__main__":
    at, real = int(sys.argv[1]), display.Rows.add

    def dying(self, done, values):
        real(self, done, values)
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    display.Rows.add = dying
    checkpoints.source_version = lambda: "of these tests"
    sys.exit(main(sys.argv[2:]))

"""What tests ask a worker to do; apart from the tests, since its process imports what the function's module does."""

import importlib
import os
import time


def report_twice(progress):
    progress(1, "one")
    print("noise on stdout")
    progress(2, "two")
    return "done"


def fail(kind):
    raise kind("told in the other process")


def report_forever(progress):
    while True:
        progress(os.getpid(), os.environ["TMPDIR"])
        time.sleep(0.02)


def file_of(module):
    return importlib.import_module(module).__file__

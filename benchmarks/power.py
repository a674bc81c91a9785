"""The watts that this processor draws while it runs a model, for `pocketformer search --energy`.

    python benchmarks/power.py model.onnx [--runtime onnxruntime] [--threads 1] [--seconds 10]

Reads the processor's own energy counters (RAPL; most systems let only root read them), which count everything that its
packages do: stop what else runs. The idle figure says how much of it is not the model's.
"""

import argparse
import time

import numpy as np

from pocketformer.devices.energy import Counters
from pocketformer.errors import UserError, WorkError
from pocketformer.runtimes import runtime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="an exported file")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    counters = Counters()
    session = runtime(args.runtime).load(args.model, args.threads)
    run = session.prepare(np.random.default_rng(0).standard_normal(session.shape, np.float32))
    run()
    idle = counters.watts(lambda: time.sleep(0.05), args.seconds)
    busy = counters.watts(run, args.seconds)
    print(f"idle {idle:.2f} W; running {args.model} {busy:.2f} W: --energy {busy:.2f}W")


if __name__ == "__main__":
    try:
        main()
    except (UserError, WorkError) as error:
        raise SystemExit(str(error)) from None

"""How fast the models train, beside each other.

    python -m results.speed
    python -m results.speed --data ptb --hidden-size 512 --threads 1

The flags are those of train.py. For each model the median speed of its training steps is printed, in tokens per second,
and as a ratio to `lstm`. Then follow the LSTMs alone, forward and backward: `lstm_cell.LSTM` beside `torch.nn.LSTM`.
All of them take turns, so that a change in the machine's speed affects them equally.
"""

import statistics
import sys
import time

import data  # before torch, see there
import torch

import sample
import train
from attention_lm import MODELS


def core_step(core, x, bfloat16):
    """Forward and backward of an LSTM alone over x (T, B, E)."""
    core.zero_grad()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        output, _ = core(x)  # (T, B, H)
    output.sum().backward()


def main(argv=None, rounds=12, steps=5):
    """Run the command; argv is a list of words as in a shell, sys.argv if None.

    Each job has `rounds` turns of `steps` steps, after one turn that does not count.
    Raises InputError for flags that train.py refuses.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = train.parse_arguments(argv)
    corpus = data.load_corpus(**data.corpus_settings(vars(args)))
    device = sample.device_of(args.device)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    jobs = {}
    for name in MODELS:
        training = train.Run(train.parse_arguments([*argv, "--model", name]), corpus, device)
        jobs[name] = training.training_step, [0.5]  # the progress, for the learning rate
        if name in ("lstm", "cell"):
            core = training.model.core
            x = torch.randn(args.bptt, args.batch_size, core.input_size, device=device, requires_grad=True)  # (T, B, E)
            jobs[f"{name} alone"] = core_step, [core, x, args.dtype == "bfloat16"]
    speeds = {name: [] for name in jobs}
    for _ in range(1 + rounds):
        for name, (job, arguments) in jobs.items():
            begun = time.monotonic()
            for _ in range(steps):
                job(*arguments)
            torch.ones(1, device=device).item()  # this waits until a GPU has finished
            speeds[name].append(steps * args.bptt * args.batch_size / (time.monotonic() - begun))
    medians = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    for name, median in medians.items():
        base = "lstm alone" if name.endswith("alone") else "lstm"
        print(f"{name:>16}  {median:>9,.0f} tokens/s  {median / medians[base]:.2f} of {base}")


if __name__ == "__main__":
    data.run_script(main)

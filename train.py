"""Train a language model, test it, and let it write.

    python train.py --model cell                       # the LSTM written out, on the built-in corpus
    python train.py --model lstm                       # the same on torch.nn.LSTM
    python train.py --model attention                  # encoder, decoder and attention
    python train.py --model cell --minutes 1           # the best that one minute allows
    python train.py --model cell --data my.txt --level char --out out/mine
    python train.py --resume out/cell                  # go on after Ctrl-C, a kill or a power cut
    torchrun --nproc_per_node=2 train.py --model cell  # one model, trained by two processes, for two GPUs

From Python or a notebook:

    import train
    results = train.main(["--model", "cell", "--minutes", "1"])

A run is a folder that no other run writes to: out/cell, then out/cell-2, and so on. It holds

    checkpoint.pt   the best model by validation perplexity, for sample.py, and all that --resume needs
    log.csv         one row for each validation; a copy of what checkpoint.pt holds

checkpoint.pt is written at the start, about once a minute, before and after each validation, and at the end. A new file
replaces the old one in one step, so that there is a whole one at every moment. However a run ends, --resume goes on
from that file. A run of one process with --epochs and a fixed --threads ends with the weights that it would have had.

Perplexity is exp(mean of -log P(token) in nats) over a split. Every token of the split is a target once. The split is
read as one text from beginning to end with its state carried, as Mikolov et al. (2010) and Zaremba et al. (2014) do, so
perplexity does not depend on the batch size. The validation split chooses the model; the test split is read once.

Sizes in comments: T steps (bptt), B streams (batch size), N tokens of a split.
"""

import argparse
import copy
import dataclasses
import datetime
import functools
import itertools
import math
import os
import pathlib
import sys
import time

from data import SPLITS, TOKENISERS, InputError, Parser, add_corpus_flags, load_corpus, number, pairs, run_script
from data import streams, window, windows, write_atomically
import torch
import torch.distributed as dist
from torch import nn

from sample import DEFAULT_TEMPERATURE, LARGEST, MODELS, check_sizes, continuations, device_of, first_line
from sample import load_checkpoint, model_name, read_checkpoint, save_checkpoint

OPTIMIZERS = {  # fused: all of a tensor's update in one operation, three times as fast
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "sgd": functools.partial(torch.optim.SGD, fused=True),
}
SAVE_EVERY = 60  # seconds
NOT_SETTINGS = ("resume", "out")  # the flags that say where, and nothing about the model
FREE = "lr halve_after clip epochs minutes target_ppl valid_every device dtype threads".split()  # --resume may change


# --- Evaluation --------------------------------------------------------------------------


@torch.inference_mode()
def evaluate(model, tokens, start, chunk=256):
    """Mean of -log P(token) in nats over a split, with each of its N tokens a target exactly once.

    The split is one stream, read in chunks with the state carried; their length does not change the result.
    tokens: integers (N,).  start: the token before the first.
    """
    training, total, state = model.training, 0.0, None
    model.eval()
    input, target = (side[:, None] for side in pairs(tokens, start))  # (N, 1)
    for x, y in windows(input, target, chunk):
        loss, state = model.loss(x, y, state)
        total += loss.item() * len(y)
    model.train(training)
    return total / len(tokens)


def perplexity(nats):
    """exp(nats), or inf where that is too large for a float."""
    return math.exp(nats) if nats < 700 else math.inf


# --- The steps of training --------------------------------------------------------------------


def schedule(progress, epoch=1, halve_after=None):
    """The learning rate as a fraction of its peak, at a progress from 0 to 1 in an epoch counted from 1.

    It rises from 2% over the first 3% of the training and then falls along a cosine to zero. With halve_after it is 1
    up to that epoch and is halved at each later one, as in Zaremba et al. (2014).
    """
    if halve_after:
        return 0.5 ** max(0, epoch - halve_after)
    return min(1.0, progress / 0.03 + 0.02) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclasses.dataclass
class Counters:
    """How far a run is. They are saved and resumed as a whole, so a new one needs no line elsewhere."""

    step: int = 0
    seconds: float = 0.0  # of training so far, with validations
    validated: int = 0  # the step of the last validation
    loss_sum: float = 0.0  # of the training losses since then
    best_loss: float = math.inf  # the smallest validation loss
    log: str = "step,epoch,seconds,tokens_per_second,train_loss,valid_loss,valid_ppl\n"


class Run:
    """A model in training: its next step and its validation.

    args: the flags.  corpus: a Corpus.  device: a torch.device.
    rank, processes: this process's number and their number, 0 and 1 for one process: see `join_processes`.
    Raises InputError for flags that contradict each other, and for a batch that cannot be shared.
    """

    def __init__(self, args, corpus, device, rank=0, processes=1):
        if args.batch_size % processes:
            raise InputError(f"--batch-size {args.batch_size} cannot be divided by {processes} processes")
        self.args, self.corpus, self.device, self.rank, self.processes = args, corpus, device, rank, processes
        torch.manual_seed(args.seed)
        try:
            self.model = MODELS[args.model](len(corpus.vocabulary), vars(args)).to(device)
        except ValueError as error:
            raise InputError(str(error)) from None
        if args.init:
            for parameter in self.model.parameters():
                nn.init.uniform_(parameter, -args.init, args.init)
        self.bfloat16 = low_precision(args.dtype, device)
        self.optimizer = OPTIMIZERS[args.optimizer](self.model.parameters(), lr=args.lr)
        sides = [streams(side, args.batch_size) for side in pairs(corpus.train, corpus.vocabulary.start)]
        sides = [side.chunk(processes, dim=1)[rank].to(device) for side in sides]
        self.input, self.target = sides  # (N / B, B / processes) each
        self.steps_per_epoch = math.ceil(len(self.input) / args.bptt)
        self.loss = self.model.loss  # `share` wraps it for several processes
        self.counters, self.state, self.best = Counters(), None, None
        self.all_threads = torch.get_num_threads()  # as it is before `train` changes it
        self.begun = self.speed_since = time.monotonic()
        self.tokens = 0  # trained on since `speed_since`, which moves forward by time that is no training

    def progress(self):
        """How much of the training is done: 1 when the minutes, the epochs or the target perplexity are reached.

        It looks at the clock, and keeps the time in the counters.
        """
        counters, args = self.counters, self.args
        counters.seconds = time.monotonic() - self.begun
        if args.target_ppl and perplexity(counters.best_loss) <= args.target_ppl:
            return 1.0
        if args.minutes:
            return min(1.0, counters.seconds / (60 * args.minutes))
        return min(1.0, counters.step / (args.epochs * self.steps_per_epoch))

    def training_step(self, progress):
        """One window forward and backward and one step of the optimizer, at a progress from 0 to 1."""
        counters, args = self.counters, self.args
        self.model.grow(progress)
        epoch = 1 + counters.step // self.steps_per_epoch
        for group in self.optimizer.param_groups:  # torch's schedulers count steps, but progress may count time
            group["lr"] = args.lr * schedule(progress, epoch, args.halve_after)
        loss, state = self.forward_and_backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), args.clip)
        self.optimizer.step()
        self.state = tuple(part.detach() for part in state)  # the gradient ends at the edge of the window
        counters.step += 1
        counters.loss_sum += loss  # a tensor from here on: reading its value would make a GPU wait
        self.tokens += args.bptt * args.batch_size

    def forward_and_backward(self):
        """The loss of the next window and, in the parameters, its gradient -> loss, next state."""
        position = self.counters.step % self.steps_per_epoch
        input, target = window(self.input, self.target, self.args.bptt, position)  # (T, B / processes)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss, state = self.loss(input, target, self.state if position else None)
        loss.backward()
        return loss.detach(), state

    def speed(self):
        """Training tokens per second since the last validation, of all processes."""
        return self.tokens / max(1e-9, time.monotonic() - self.speed_since)

    def train_loss(self):
        """The mean of the training losses since the last validation, in this process."""
        return float(self.counters.loss_sum) / max(1, self.counters.step - self.counters.validated)

    def validate(self):
        """Evaluate on the validation split, add a row to the log, and keep the weights if they are the best so far.

        Returns what to show.
        """
        counters, speed = self.counters, self.speed()
        train_loss = mean(self.train_loss())  # over the processes
        counters.validated, counters.loss_sum = counters.step, 0.0
        if self.rank:
            return ""
        valid_loss = evaluate(self.model, self.corpus.valid.to(self.device), self.corpus.vocabulary.start)
        if valid_loss < counters.best_loss:
            counters.best_loss, self.best = valid_loss, copy.deepcopy(self.model.state_dict())
        counters.seconds = time.monotonic() - self.begun
        self.tokens, self.speed_since = 0, time.monotonic()
        return report(self, train_loss, valid_loss, speed)


# --- The loop --------------------------------------------------------------------------------


def train(run, out, display):
    """Train until the epochs, the minutes or the target perplexity are reached.

    Each turn of the loop either validates or takes one step. To change what happens in a step, see `Run.training_step`.
    out: the folder to save to, a path.  display: a Display.
    Raises InputError when a weight becomes inf or nan.
    """
    args, counters = run.args, run.counters
    every = args.valid_every or run.steps_per_epoch
    torch.set_num_threads(args.threads or run.all_threads)
    run.model.train()
    if counters.step == 0:
        save(run, out)
    choose_threads(run, display)
    minute = time.monotonic()
    while True:
        progress = from_first(run.progress())  # of several processes, the first looks at the clock
        finished = progress == 1 and counters.step > 0
        if (finished or counters.step % every == 0) and counters.validated < counters.step:
            save(run, out)  # a validation can take long
            if display.live:
                display.update("validating")
            display.line(run.validate())
            save(run, out)
            continue
        if finished:
            return
        if time.monotonic() - minute > SAVE_EVERY:
            save(run, out)
            choose_threads(run, display)
            minute = time.monotonic()
        run.training_step(progress)
        if display.is_due():
            display.update(status(run, progress))


# --- The rest is not about language models: skip it on a first reading ------------------------
#
# It chooses precision and threads, lets several processes train one model, keeps a run in a file, shows how far
# training is, and reads the flags.


# --- Precision and threads ---------------------------------------------------------------------


def low_precision(name, device):
    """--dtype and a torch.device -> whether to compute products in bfloat16; "auto" does where it is fast."""
    if name != "auto":
        return name == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    abilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(abilities.get(kind) for kind in ("avx512_bf16", "amx_bf16"))


def faster_threads(trial, every):
    """Set the number of threads, 1 or `every`, with which `trial()` takes fewer seconds now, and return it.

    Threads wait for each other at each of a step's small operations. So when another program keeps a core busy, all
    threads can be slower than one, up to thirty times.
    """
    seconds = {1: math.inf, every: math.inf}
    for _ in range(3):  # the fastest of three, so that a short disturbance does not count
        for threads in seconds:
            torch.set_num_threads(threads)
            seconds[threads] = min(seconds[threads], trial())
        if seconds[every] > 2 * seconds[1]:
            break
    threads = 1 if seconds[1] < 0.9 * seconds[every] else every
    torch.set_num_threads(threads)
    return threads


def trial(run):
    """Seconds for forward and backward of a run's next window. It changes only the gradient and `speed_since`."""
    begun = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        run.forward_and_backward()
    seconds = time.monotonic() - begun
    run.speed_since += seconds  # it is no part of the training speed, and neither is writing files
    return seconds


def choose_threads(run, display):
    """Go on with one thread or with all, whichever is faster now, unless the number is given."""
    given = run.args.threads or "OMP_NUM_THREADS" in os.environ
    if given or run.processes > 1 or run.device.type != "cpu":
        return
    before = torch.get_num_threads()
    threads = faster_threads(functools.partial(trial, run), run.all_threads)
    if threads != before:
        display.line(f"going on with {threads} of {run.all_threads} threads, which is faster now")


# --- Several processes -----------------------------------------------------------------------
#
# torchrun starts N processes. Each trains on B / N of the B streams, and DistributedDataParallel averages their
# gradients, so that together they take the step that one process would take. (Their dropout differs.) The first,
# rank 0, leads: it validates, prints, saves, and tells the others how far training is.
#
# Use one process for each GPU; on one CPU, one process is faster. To survive the loss of a process, make the folder
# first: mkdir -p out/big && torchrun --max-restarts=2 --nproc_per_node=2 train.py --model cell --resume out/big


def join_processes():
    """Join the processes that torchrun started -> this one's rank, and their number; 0 and 1 without torchrun."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if count > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        store, rank, count = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)  # it outlives a restart
        wait = datetime.timedelta(days=7)  # the others wait while rank 0 validates
        dist.init_process_group(store=store, rank=rank, world_size=count, timeout=wait)
    return rank, count


def from_first(value):
    """A float of rank 0, in all processes."""
    if not dist.is_initialized():
        return value
    value = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(value, src=0)
    return value.item()


def mean(value):
    """The mean of a float over the processes."""
    if not dist.is_initialized():
        return value
    value = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(value)
    return value.item() / dist.get_world_size()


class Loss(nn.Module):
    """A model's `loss` as a `forward`, the only call that DistributedDataParallel passes on."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input, target, state):
        """input, target int64 (T, B), state or None -> mean of -log P(target) in nats, state."""
        return self.model.loss(input, target, state)


def share(run):
    """Let a run train together with those of the other processes from here on."""
    torch.manual_seed(run.args.seed + run.rank)  # different dropout in each process
    run.loss = nn.parallel.DistributedDataParallel(Loss(run.model))


# --- A run's file and folder --------------------------------------------------------------------


def random_numbers(device):
    """The module that has `get_rng_state` and `set_rng_state` for a device."""
    return torch if device.type == "cpu" else torch.get_device_module(device)


def checkpoint_of(run):
    """All that there is to save of a run, in a dict: see `sample.save_checkpoint`."""
    alone = run.processes == 1  # several processes have several states; after a restart they begin anew
    return {
        "settings": {name: value for name, value in vars(run.args).items() if name not in NOT_SETTINGS},
        "vocabulary": run.corpus.vocabulary.plain(),
        "weights": run.best or run.model.state_dict(),
        "results": {"valid_ppl": perplexity(run.counters.best_loss)} if run.best else {},
        "training": {
            "counters": {**vars(run.counters), "loss_sum": float(run.counters.loss_sum)},
            "weights": run.model.state_dict(),  # after the last step
            "optimizer": run.optimizer.state_dict(),
            "state": run.state if alone else None,
            "random": {run.device.type: random_numbers(run.device).get_rng_state()} if alone else {},
        },
    }


def save(run, out):
    """Write a run's checkpoint.pt and log.csv to the folder `out`, in the first process.

    Raises InputError, and leaves the earlier file, when a weight is inf or nan, or when the file cannot be written.
    """
    if run.rank:
        return
    if not all(parameter.isfinite().all() for parameter in run.model.parameters()):
        advice = f"try a lower --lr or --clip; {out / 'checkpoint.pt'} holds the run before that"
        raise InputError(f"the weights became inf or nan by step {run.counters.step}: {advice}")
    begun = time.monotonic()
    write_atomically(out / "log.csv", run.counters.log.encode())
    save_checkpoint(out / "checkpoint.pt", checkpoint_of(run))
    run.speed_since += time.monotonic() - begun


def restore(run, checkpoint):
    """Let a run take over what `checkpoint_of` returned."""
    run.state = None
    training = copy.deepcopy(checkpoint["training"])  # optimizers keep the tensors that they load
    known = {field.name for field in dataclasses.fields(Counters)}  # a file of another version may have more
    counters = Counters(**{name: value for name, value in training["counters"].items() if name in known})
    if any(type(value) is not type(getattr(Counters, name)) for name, value in vars(counters).items()):
        raise ValueError("its counters are damaged")
    run.counters, run.best = counters, checkpoint["weights"] if counters.validated else None
    run.begun = time.monotonic() - counters.seconds
    run.model.load_state_dict(training["weights"])
    run.optimizer.load_state_dict(training["optimizer"])
    if run.optimizer.defaults.get("fused"):  # these write beyond a tensor's end if it is too small
        for parameter, state in run.optimizer.state.items():
            for name, part in state.items():
                if name != "step" and part.shape != parameter.shape:
                    raise ValueError("its optimizer is damaged")
    if run.processes == 1 and training["state"] is not None:
        run.state = tuple(part.to(run.device) for part in training["state"])
    if run.device.type in training["random"]:
        random_numbers(run.device).set_rng_state(training["random"][run.device.type])
    else:  # the run goes on with another device or another number of processes
        torch.manual_seed(run.args.seed + counters.step)


def resume(run, checkpoint):
    """Let a run go on from what `checkpoint_of` returned, if a trial step shows that it can, else raise InputError."""
    try:
        restore(run, checkpoint)
        run.training_step(run.progress())  # the trial: whatever is damaged raises an error by the last line
        status(run, run.progress())
        if not math.isfinite(run.counters.loss_sum):
            raise ValueError("its weights are not finite")
        run.model.load_state_dict(checkpoint["weights"])
        restore(run, checkpoint)  # once more, because the trial has changed the weights
    except Exception as error:
        raise InputError(f"the run cannot go on from its checkpoint.pt: {first_line(error)}") from None


def saved_run(folder):
    """The checkpoint of the run in a folder, or None where there is no run in it yet.

    Raises InputError where there is no such folder, or the file in it is no run.
    """
    path = pathlib.Path(folder) / "checkpoint.pt"
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {folder} to resume: leave --resume out to begin a run")
    if not path.exists():
        return None
    checkpoint = read_checkpoint(path)
    if not isinstance(checkpoint.get("settings"), dict):
        raise InputError(f"{path} is not a checkpoint of train.py: it has no settings")
    return checkpoint


def claim(out):
    """Make a folder for a run -> whether no other run had it.  Raises InputError if it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.csv").touch(exist_ok=False)  # of several runs that begin at the same moment, only one can do this
        return not (out / "checkpoint.pt").exists()
    except FileExistsError:
        return False
    except OSError as error:
        raise InputError(f"output folder {out} cannot be written: {error.strerror}") from None


def folder_of(args):
    """The folder of a run, made if it is a new one -> a path.  Raises InputError if it holds another run."""
    if args.resume:
        return pathlib.Path(args.resume)
    if args.out:
        if not claim(pathlib.Path(args.out)):
            advice = f"give another --out, or go on with --resume {args.out}"
            raise InputError(f"{args.out} holds a run already, or is a file: {advice}")
        return pathlib.Path(args.out)
    out = pathlib.Path("out") / model_name(vars(args))
    for n in itertools.count(2):
        if claim(out):
            return out
        out = out.with_name(f"{model_name(vars(args))}-{n}")


# --- What is shown -----------------------------------------------------------------------


class Display:
    """What training prints: on a terminal a line that is updated, elsewhere a line now and then; nothing if quiet."""

    def __init__(self, quiet=False):
        self.quiet, self.live, self.shown = quiet, sys.stdout.isatty(), time.monotonic()

    def is_due(self):
        """Whether it is time for an update: five times a second on a terminal, twice a minute elsewhere."""
        return time.monotonic() - self.shown > (0.2 if self.live else 30)

    def update(self, text):
        """Print where training stands; on a terminal the next text takes its place."""
        self.shown = time.monotonic()
        self.line(text, end="\r" if self.live else "\n")

    def line(self, text, end="\n"):
        """Print a line that stays."""
        if not self.quiet:
            print(f"{text:<79}" if self.live else text, end=end, flush=True)


def status(run, progress):
    """Where a run stands, in a line."""
    step, epoch, loss = run.counters.step, run.counters.step / run.steps_per_epoch, run.train_loss()
    left = run.counters.seconds * (1 - progress) / max(progress, 1e-9)
    return (
        f"epoch {epoch:5.2f}  step {step:>5}  loss {loss:.3f}  ppl {perplexity(loss):7.2f}  "
        f"{run.speed():>6,.0f} tokens/s  {clock(left)} left"
    )


def report(run, train_loss, valid_loss, speed):
    """Add a row to a run's log -> the same as a line to show.  The losses are in nats, the speed in tokens/s."""
    step, epoch, seconds = run.counters.step, run.counters.step / run.steps_per_epoch, run.counters.seconds
    ppl = perplexity(valid_loss)
    run.counters.log += f"{step},{epoch:.2f},{seconds:.1f},{speed:.0f},{train_loss:.4f},{valid_loss:.4f},{ppl:.2f}\n"
    return (
        f"epoch {epoch:5.2f}  step {step:>5}  ppl train {perplexity(train_loss):7.2f} valid {ppl:7.2f}  "
        f"{speed:>6,.0f} tokens/s  {clock(seconds)}"
    )


def clock(seconds):
    """Seconds as 1:02:03."""
    return str(datetime.timedelta(seconds=round(seconds)))


# --- The test -------------------------------------------------------------------------------


def test(run, out, display):
    """Test the best model, add the result to its checkpoint, and print it with a sample of text -> results dict."""
    args, corpus, path = run.args, run.corpus, out / "checkpoint.pt"
    model, vocabulary, checkpoint = load_checkpoint(path, run.device)

    def shown(nats):
        return f"{perplexity(nats):.2f} ({nats:.4f} nats per token)"

    results = {"valid_ppl": perplexity(run.counters.best_loss), "test_ppl": None}
    display.line(f"best valid perplexity {shown(run.counters.best_loss)}, kept in {path}")
    if len(corpus.test):
        if display.live:
            display.update("testing")
        nats = evaluate(model, corpus.test.to(run.device), vocabulary.start)
        results["test_ppl"] = perplexity(nats)
        display.line(f"test perplexity {shown(nats)}")
    else:
        display.line("no test perplexity: this split of the corpus leaves no test text")
    save_checkpoint(path, {**checkpoint, "results": results})
    per_word = TOKENISERS[vocabulary.tokeniser].per_word
    prompt = vocabulary.decode(corpus.valid[: 10 * per_word])
    steps = continuations(model, vocabulary, prompt, 60 * per_word, seed=args.seed, temperature=DEFAULT_TEMPERATURE)
    text = vocabulary.join([*prompt, *(token for (token,) in steps)])
    name = model_name(vars(args))
    display.line(f"\nThe first {len(prompt)} tokens of the validation text, and how {name} goes on:\n")
    display.line("".join(text).strip())
    return {**results, "checkpoint": str(path)}


# --- The command -------------------------------------------------------------------------


def make_parser():
    """The parser of the flags."""
    parser = Parser(__doc__)
    size, positive, above_0 = number(int, 1, LARGEST), number(int, 1), number(float, 0, open_low=True)
    fraction = number(float, 0, 0.95)
    yes_or_no = argparse.BooleanOptionalAction
    flag = add_corpus_flags(parser).add_argument
    flag("--data", default="python-docs", help="python-docs, ptb, shakespeare, a text file, or a folder (%(default)s)")
    flag = parser.add_argument_group("model").add_argument
    flag("--model", choices=list(MODELS), default="cell", help="(%(default)s)")
    flag("--input", choices=["embedding", "one-hot"], default="embedding", help="(%(default)s)")
    flag("--hidden-size", metavar="N", type=size, help="units in a layer (256; attention: 190; self-attention: 240)")
    flag("--embedding-size", metavar="N", type=size, help="numbers for a token (the hidden size)")
    flag("--layers", metavar="N", type=number(int, 1, 100), default=1, help="stacked LSTMs (%(default)s)")
    flag("--dropout", metavar="X", type=fraction, default=0.4, help="fraction set to 0 (%(default)s)")
    flag("--locked-dropout", action=yes_or_no, default=False, help="drop the same units at all steps of a window (no)")
    flag("--weight-dropout", metavar="X", type=fraction, default=0.0, help="fraction of W_hh set to 0 (%(default)s)")
    flag("--tie-weights", action=yes_or_no, help="one matrix for embedding and output (yes, unless one-hot)")
    flag = parser.add_argument_group("attention").add_argument
    states = "whose states it sees; decoder is self-attention (%(default)s)"
    flag("--memory-from", choices=["encoder", "decoder"], default="encoder", help=states)
    reach = "how many steps back it sees in reading; in training at most 400 (%(default)s)"
    flag("--memory", metavar="N", type=size, default=2000, help=reach)
    training = parser.add_argument_group("training")
    flag = training.add_argument
    flag("--batch-size", metavar="N", type=size, default=20, help="parallel streams (%(default)s)")
    flag("--bptt", metavar="N", type=size, default=35, help="steps in a window (%(default)s)")
    flag("--optimizer", choices=list(OPTIMIZERS), default="adamw", help="(%(default)s)")
    flag("--lr", metavar="X", type=above_0, default=6e-3, help="learning rate at its peak (%(default)s)")
    flag("--halve-after", metavar="EPOCH", type=positive, help="keep --lr up to here, then halve it each epoch (off)")
    flag("--init", metavar="X", type=above_0, help="draw all weights and biases from -X to X (each as its layer does)")
    flag("--clip", metavar="X", type=above_0, default=0.5, help="largest norm of the gradient (%(default)s)")
    either = training.add_mutually_exclusive_group().add_argument
    either("--epochs", metavar="N", type=positive, help="passes over the corpus (6)")
    either("--minutes", metavar="X", type=above_0, help="train for this time instead; the test comes after it (none)")
    flag("--target-ppl", metavar="X", type=number(float, 1), help="stop at this validation perplexity (none)")
    flag("--valid-every", metavar="STEPS", type=positive, help="steps between validations (an epoch)")
    flag("--seed", metavar="N", type=number(int, 0, 2**62), default=1, help="of weights and dropout (%(default)s)")
    flag = parser.add_argument_group("machine and files").add_argument
    flag("--device", default="auto", help="auto, cuda, mps or cpu (%(default)s)")
    flag("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="of products (bfloat16 where fast)")
    flag("--threads", metavar="N", type=number(int, 1, 1024), help="of the processor (all, or one while it is faster)")
    flag("--out", metavar="DIR", help="the folder to write to (out/cell, or the first of out/cell-2, ... that is free)")
    flag("--resume", metavar="DIR", help="go on with the run in DIR, or begin one there")
    return parser


def parse_arguments(argv, settings=None):
    """The flags -> a namespace.  settings: those of a run that goes on; flags in argv may change some of them.

    Raises InputError for flags that cannot be, or cannot be changed.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if settings is not None:  # parsed again, with the settings as flags that stand before the given ones
        if args.epochs or args.minutes:
            settings = {**settings, "epochs": None, "minutes": None}
        args = parser.parse_args([*as_flags(settings, vars(args)), *argv])
    if not args.epochs and not args.minutes:
        args.epochs = 6
    sizes = {"attention": 190, "self-attention": 240}  # so all have as many parameters on python-docs, within 2%
    args.hidden_size = args.hidden_size or sizes.get(model_name(vars(args)), 256)
    args.embedding_size = args.embedding_size or args.hidden_size
    if args.tie_weights is None:
        args.tie_weights = args.input == "embedding"
    if args.resume and args.out:
        parser.error("a resumed run stays in its folder: leave --out out")
    for name, value in (settings or {}).items():
        if name not in FREE and value != vars(args).get(name, value):
            flag, advice = f"--{name.replace('_', '-')}", "leave the flag out, or train anew without --resume"
            raise InputError(f"{args.resume} was trained with {flag} {value}, not {getattr(args, name)}: {advice}")
    return args


def as_flags(settings, known):
    """Settings as the words of a command line, so that one parser checks both.  known: the names that have a flag."""
    words = []
    for name, value in settings.items():
        if name not in known or value is None:
            continue  # a flag of another version, or one that is not given
        flag = f"--{name.replace('_', '-')}"
        if type(value) is bool:
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif type(value) is list and all(type(number) is float for number in value):
            words += [flag, *map(str, value)]
        elif type(value) in (str, int, float) and str(value).isprintable():
            words.append(f"{flag}={value}")
        else:
            raise InputError(f"the checkpoint's setting {name} is damaged")
    return words


def main(argv=None, corpus=None):
    """Train, test and write a sample.

    argv: a list of words as in a shell, sys.argv if None.
    corpus: a Corpus to use instead of --data, see `data.corpus_of`.

    Returns a dict with valid_ppl, test_ppl (None without a test text) and checkpoint, the path; None in all processes
    of torchrun but the first.
    Raises InputError for what the user can correct.
    """
    argv = sys.argv[1:] if argv is None else argv
    args, saved = parse_arguments(argv), None
    if args.resume:
        saved = saved_run(args.resume)
    if saved:
        args = parse_arguments(argv, saved["settings"])
    rank, processes = join_processes()
    device = device_of(args.device)
    display = Display(quiet=rank > 0)
    if corpus is None:
        display.line(f"reading {args.data}")
        corpus = load_corpus(args.data, args.level, args.min_count, args.vocab_size, args.split)
    sizes = ", ".join(f"{len(tokens):,} {split}" for split, tokens in zip(SPLITS, corpus[1:]))
    display.line(f"{sizes} tokens, {len(corpus.vocabulary):,} different, tokeniser {corpus.vocabulary.tokeniser}")
    if saved:  # before a model is made, which could be too large
        check_sizes(vars(args), len(corpus.vocabulary), pathlib.Path(args.resume) / "checkpoint.pt")
    run = Run(args, corpus, device, rank, processes)
    if saved:
        if saved.get("vocabulary") != corpus.vocabulary.plain():
            raise InputError(f"{args.data} is not the text that {args.resume} was trained on: its vocabulary differs")
        resume(run, saved)
    if processes > 1:
        share(run)
    out = folder_of(args) if rank == 0 else None  # not earlier: from here on nothing is wrong with the flags
    display.line(
        f"{model_name(vars(args))}: {sum(p.numel() for p in run.model.parameters()):,} parameters on {device}, "
        f"{'bfloat16' if run.bfloat16 else 'float32'} products, writing to {out}"
    )
    if saved and run.progress() == 1:
        display.line("this run has ended: give more --epochs or --minutes, or a lower --target-ppl, to go on")
    try:
        train(run, out, display)
        return test(run, out, display) if rank == 0 else None
    except KeyboardInterrupt:
        display.line(f"\ninterrupted; go on with: python train.py --resume {out}")
        raise
    finally:
        torch.set_num_threads(run.all_threads)
        if processes > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    run_script(main)

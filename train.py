"""Train a language model, test it, and let it write.

    python train.py --model cell                       # the LSTM written out, on the built-in corpus
    python train.py --model lstm                       # the same on torch.nn.LSTM
    python train.py --model attention                  # encoder, decoder and attention
    python train.py --model cell --minutes 1           # the best that one minute allows
    python train.py --model cell --data my.txt --level char --out out/mine
    python train.py --resume out/cell                  # go on after Ctrl-C
    torchrun --nproc_per_node=2 train.py --model cell  # one model, trained by two processes

From Python or a notebook:

    import train
    results = train.main(["--model", "cell", "--minutes", "1"])

It writes into the folder --out:

    checkpoint.pt   the best model by validation perplexity, for sample.py
    log.csv         one row for each validation
    resume.pt       everything that --resume needs; written last, about once a minute
    previous-1/     the files of an earlier run in the same folder, if there was one

Perplexity is exp(mean of -log P(token) in nats) over a split. Every token of the split is a target once. The split is
read as one text from beginning to end with its state carried, as Mikolov et al. (2010) and Zaremba et al. (2014) do, so
perplexity does not depend on the batch size. The validation split chooses the model; the test split is read once.

Sizes in comments: T steps (bptt), B streams (batch size), N tokens of a split.
"""

import argparse
import contextlib
import copy
import ctypes
import datetime
import itertools
import math
import os
import pathlib
import pickle
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
import uuid

from data import SPLITS, InputError, Parser, add_corpus_flags, detokenise, load_corpus, number, pairs, run, streams
from data import windows, write_atomically
import torch
import torch.distributed as dist
from torch import nn

from sample import LARGEST, MODELS, MOST_LAYERS, build_model, continuations, device_of, load_checkpoint
from sample import read_checkpoint, save_checkpoint

if sys.platform != "win32":
    import fcntl

COLUMNS = ["step", "epoch", "seconds", "tokens_per_second", "train_loss", "valid_loss", "valid_ppl"]  # of log.csv
SAVE_EVERY = 60  # seconds
NOT_SETTINGS = ("resume", "out", "benchmark")  # the flags that say what to do and where, and nothing about the model
PLAIN = ("step", "best_loss", "rows", "step_count")  # of a Trainer, kept in resume.pt
FREE = "lr halve_after clip epochs minutes target_ppl valid_every seed device dtype".split()  # what --resume may change


class DivergenceError(InputError):
    """The loss or a weight is inf or nan, so that training cannot go on."""


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


# --- Schedule and precision --------------------------------------------------------------


def schedule(progress, epoch=1, halve_after=None):
    """The learning rate as a fraction of its peak, at a progress from 0 to 1 in an epoch counted from 1.

    It rises for a short time and then falls along a cosine to zero. With halve_after it is 1 up to that epoch and is
    halved at each later one, as in Zaremba et al. (2014).
    """
    if halve_after:
        return 0.5 ** max(0, epoch - halve_after)
    return min(1.0, progress / 0.03 + 0.02) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def low_precision(name, device):
    """--dtype and a torch.device -> (whether to compute products in bfloat16, a note or None)."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        abilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        fast = any(abilities.get(kind) for kind in ("avx512_bf16", "amx_bf16"))
    slow = name == "bfloat16" and not fast
    return name == "bfloat16" or (name == "auto" and fast), "no fast bfloat16 on this device" if slow else None


def keep_freed_memory():
    """Let the C library keep the memory that one training step frees for the next step, if it is glibc.

    By default it returns blocks of some megabytes to the system, and getting them back page by page took 7% of a step
    of `cell` with two threads and 24% with one.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h; sizes in bytes
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)


# --- Training ----------------------------------------------------------------------------


def new_model(args, vocab_size, device):
    """The model that the flags describe, with its first weights."""
    torch.manual_seed(args.seed)
    try:
        model = build_model(vars(args), vocab_size).to(device)
    except ValueError as error:  # flags that contradict each other
        raise InputError(str(error)) from None
    for parameter in model.parameters() if args.init else ():
        nn.init.uniform_(parameter, -args.init, args.init)
    return model


class Loss(nn.Module):
    """A model's `loss` as a `forward`, the only call that DistributedDataParallel passes on."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input, target, state):
        """input, target int64 (T, B), state or None -> mean of -log P(target) in nats, state."""
        return self.model.loss(input, target, state)


class Trainer:
    """A training run: its next step, its loop, its validations and its files.

    model: a LanguageModel on its device.  corpus: a Corpus.  args: the flags.  status: a Status.
    processes: the Processes that train it.  name: of the run, for its files.
    """

    def __init__(self, model, corpus, args, status, processes, name=""):
        self.model, self.corpus, self.args, self.status = model, corpus, args, status
        self.processes, self.name, self.out = processes, name, pathlib.Path(args.out)
        self.device = next(model.parameters()).device
        self.rng = torch if self.device.type == "cpu" else torch.get_device_module(self.device)  # its random numbers
        self.bfloat16, self.note = low_precision(args.dtype, self.device)
        sides = (streams(side, args.batch_size) for side in pairs(corpus.train, corpus.vocabulary.start))
        self.sides = [processes.columns(side).to(self.device) for side in sides]  # input, target (N / B, B / processes)
        self.epoch_steps = math.ceil(len(self.sides[0]) / args.bptt)
        self.valid = corpus.valid.to(self.device)
        self.loss = Loss(model) if processes.count == 1 else nn.parallel.DistributedDataParallel(Loss(model))
        optimizer = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[args.optimizer]
        self.optimizer = optimizer(model.parameters(), args.lr, fused=self.device.type != "mps")
        self.step, self.state, self.rows, self.best_loss, self.best_weights = 0, None, [], math.inf, None
        self.begun = self.saved = time.monotonic()
        self.signalled = self.interrupted = False  # whether a signal has reached this process; any process
        self.start_interval()

    def start_interval(self):
        """Reset what is reported at each validation."""
        self.loss_sum = torch.zeros((), device=self.device)  # keeping every loss would fragment the memory
        self.step_count, self.token_count, self.interval_begun = 0, 0, time.monotonic()

    def speed(self):
        """Training tokens per second since the last validation."""
        return self.token_count / max(1e-9, time.monotonic() - self.interval_begun)

    def window(self, position):
        """Window number `position` of an epoch -> input, target, int64 (T, B / processes)."""
        start = position * self.args.bptt
        return [side[start : start + self.args.bptt].long() for side in self.sides]

    def training_step(self, progress):
        """One window forward and backward and one step of the optimizer, at a progress from 0 to 1."""
        position = self.step % self.epoch_steps
        input, target = self.window(position)  # (T, B)
        self.model.grow(progress)
        for group in self.optimizer.param_groups:  # torch's schedulers count steps, but progress may count time
            group["lr"] = self.args.lr * schedule(progress, 1 + self.step // self.epoch_steps, self.args.halve_after)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss, state = self.loss(input, target, self.state if position else None)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip)
        self.optimizer.step()
        self.state = tuple(part.detach() for part in state)  # the gradient ends at the edge of the window
        self.step += 1
        self.step_count += 1
        self.loss_sum += loss.detach()
        self.token_count += target.numel() * self.processes.count

    def progress(self):
        """How much of the training is done, from 0 to 1: of --minutes if they are given, else of --epochs."""
        if self.args.minutes:
            return min(1.0, (time.monotonic() - self.begun) / (60 * self.args.minutes))
        return min(1.0, self.step / (self.args.epochs * self.epoch_steps))

    def agree(self):
        """Progress and whether to save, which the first process decides; sets `interrupted` if a signal reached any."""
        first, save = self.processes.rank == 0, time.monotonic() - self.saved > SAVE_EVERY
        progress, save, signals = self.processes.sums(first and self.progress(), first and save, self.signalled)
        self.interrupted = signals > 0
        return progress, save

    def train(self):
        """Train until the epochs, the minutes or the target are reached, or until Ctrl-C or SIGTERM.

        Raises DivergenceError when the loss or a weight is inf or nan.
        """

        def on_signal(*_):
            if self.signalled and self.processes.count == 1:  # under torchrun one Ctrl-C may arrive twice
                raise KeyboardInterrupt
            self.signalled = True

        every = self.args.valid_every or self.epoch_steps
        target = self.args.target_ppl or 0
        self.model.train()
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(ValueError):  # outside the main thread, where no signals arrive
                for which in (signal.SIGINT, signal.SIGTERM):
                    stack.callback(signal.signal, which, signal.signal(which, on_signal) or signal.SIG_DFL)
            progress, _ = self.agree()
            while (self.step == 0 or progress < 1) and not self.interrupted and perplexity(self.best_loss) > target:
                self.training_step(progress)
                if self.step % every == 0:
                    self.validate()
                progress, save = self.agree()
                if save or self.step % every == 0:
                    self.save()
                elif self.status.is_due():
                    self.show(progress)
            if self.step_count or self.step == 0:  # otherwise the loop has just saved
                if not self.interrupted:
                    self.validate()
                self.save()
        if self.interrupted:
            self.status.line(f"interrupted; go on with: python train.py --resume {self.out}")
            self.status.line("now the best model is tested (Ctrl-C again ends at once)")

    def require_finite(self, *values):
        """Raise DivergenceError if any of these tensors or numbers is inf or nan."""
        if not all(torch.as_tensor(value).isfinite().all() for value in values):
            best = f"; {self.out / 'checkpoint.pt'} holds the best model before that" if self.rows else ""
            raise DivergenceError(f"the loss became inf or nan by step {self.step}: try a lower --lr or --clip{best}")

    def show(self, progress):
        """Report how training goes."""
        loss = self.loss_sum.item() / self.step_count  # the mean since the last validation
        self.require_finite(loss)
        left = (time.monotonic() - self.begun) * (1 - progress) / max(progress, 1e-9)
        self.status.update(
            f"epoch {self.step / self.epoch_steps:5.2f}  step {self.step:>5}  loss {loss:.3f}  "
            f"ppl {perplexity(loss):7.2f}  {self.speed():>6,.0f} tokens/s  {clock(left)} left"
        )

    def validate(self):
        """Evaluate on the validation split, add a row to the log, and keep the weights if they are the best so far.

        Raises DivergenceError when a loss is inf or nan.
        """
        first, train_loss = self.processes.rank == 0, self.loss_sum.item() / max(1, self.step_count)
        speed = self.speed()
        valid_loss = evaluate(self.model, self.valid, self.corpus.vocabulary.start) if first else 0.0
        train_loss, valid_loss = self.processes.sums(train_loss / self.processes.count, valid_loss)
        self.require_finite(train_loss, valid_loss)
        epoch, seconds = self.step / self.epoch_steps, time.monotonic() - self.begun
        ppl = perplexity(valid_loss)
        losses = [f"{train_loss:.4f}", f"{valid_loss:.4f}", f"{ppl:.2f}"]
        self.rows.append([str(self.step), f"{epoch:.2f}", f"{seconds:.1f}", f"{speed:.0f}", *losses])
        self.status.line(
            f"epoch {epoch:5.2f}  step {self.step:>5}  ppl train {perplexity(train_loss):7.2f} valid {ppl:7.2f}"
            f"  {speed:>6,.0f} tokens/s  {clock(seconds)}"
        )
        if valid_loss < self.best_loss:
            self.best_loss, self.best_weights = valid_loss, copy.deepcopy(self.model.state_dict())
        self.start_interval()

    # --- Files ---

    def best(self):
        """The checkpoint of the best model so far, or of the present one before the first validation."""
        return {
            "run": self.name,
            "settings": {name: value for name, value in vars(self.args).items() if name not in NOT_SETTINGS},
            "vocabulary": self.corpus.vocabulary.plain(),
            "weights": self.best_weights or self.model.state_dict(),
            "results": {"valid_ppl": perplexity(self.best_loss)} if self.best_weights else {},
        }

    def save(self):
        """Write checkpoint.pt and log.csv if there was a validation, and resume.pt last.

        resume.pt alone decides where a resumed run stands. So a run that was killed between two of these files is
        resumed from before them, comes to the same point and writes the same again.
        Raises DivergenceError, and writes nothing, when the loss or a weight is inf or nan.
        """
        self.require_finite(self.loss_sum, *self.model.parameters())
        self.saved = time.monotonic()
        (loss_sum,) = self.processes.sums(self.loss_sum.item() / self.processes.count)
        state = self.state and tuple(torch.cat(self.processes.gather(part), dim=1) for part in self.state)
        rng = {self.device.type: self.processes.gather(self.rng.get_rng_state())}
        if self.processes.rank:
            return
        training = {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "state": state,
            "rng": rng,
            "seconds": self.saved - self.begun,
            "loss_sum": loss_sum,
            **{name: getattr(self, name) for name in PLAIN},
        }
        best = self.best()
        if self.rows and self.step_count == 0:  # just after a validation
            save_checkpoint(self.out / "checkpoint.pt", best)
            log = "".join(",".join(row) + "\n" for row in [COLUMNS, *self.rows])
            write_atomically(self.out / "log.csv", log.encode())
        save_checkpoint(self.out / "resume.pt", {**best, "training": training})
        self.interval_begun += time.monotonic() - self.saved  # writing files is no part of the training speed

    def resume(self, saved):
        """Go on from what `save` wrote to resume.pt.  Raises InputError if it fits neither the model nor the corpus."""
        training, rank = saved["training"], self.processes.rank
        self.model.load_state_dict(training["weights"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": training["optimizer"]})
        for name in PLAIN:
            setattr(self, name, training[name])
        self.loss_sum.fill_(training["loss_sum"])
        self.best_weights = saved["weights"] if self.rows else None
        self.begun = time.monotonic() - training["seconds"]
        state, rngs = training["state"], training["rng"].get(self.device.type, [])
        self.state = state and tuple(self.processes.columns(part).to(self.device) for part in state)
        try:
            with torch.no_grad():
                self.model.loss(*self.window(0), self.state)  # an error here tells that the state does not fit
            if len(rngs) == self.processes.count:
                self.rng.set_rng_state(rngs[rank])
            else:  # the run goes on with another device or another number of processes
                torch.manual_seed(self.args.seed + self.step + rank)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{self.out / 'resume.pt'} does not fit its own settings: {reason}") from None


# --- More than one process ---------------------------------------------------------------


class Processes(contextlib.AbstractContextManager):
    """The N processes that torchrun started, or the only one without it.

    Each trains on B / N of the B streams and DistributedDataParallel averages their gradients, so that together they
    take the step that one process would take. (Their dropout differs.) Only the first, rank 0, reads, writes, evaluates
    and prints.
    """

    def __init__(self):
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def __exit__(self, kind, error, traceback):
        if error is None and dist.is_initialized():
            dist.destroy_process_group()
        if self.rank and isinstance(error, InputError):
            raise SystemExit(2)  # the first process shows the message

    def share(self, make):
        """What make() returns in the first process, in all of them; the others wait for it here."""
        if self.count == 1:
            return make()
        data = bytearray(pickle.dumps(make()) if self.rank == 0 else b"")
        store, rank, count = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)  # it outlives a restart
        dist.init_process_group(store=store, rank=rank, world_size=count)
        (size,) = self.sums(len(data))
        data = data or bytearray(int(size))
        dist.broadcast(torch.frombuffer(data, dtype=torch.uint8), src=0)  # torch's own broadcast of objects needs NumPy
        return pickle.loads(data)

    def columns(self, batch):
        """This process's streams (T, B / N, ...) of all streams (T, B, ...)."""
        return batch.chunk(self.count, dim=1)[self.rank].contiguous()

    def sums(self, *numbers):
        """The sums of numbers over the processes."""
        if self.count == 1:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def gather(self, tensor):
        """A list of each process's tensor, in main memory."""
        parts = [tensor.cpu().contiguous()]
        if self.count > 1:
            parts = [torch.empty_like(parts[0]) for _ in range(self.count)]
            dist.all_gather(parts, tensor.cpu().contiguous())
        return parts


# --- The output folder -------------------------------------------------------------------


def lock(out, stack):
    """Make the folder --out if it is missing, and let no other run write to it until `stack`, an ExitStack, is closed.

    The lock is on the folder itself and ends with the process, however that ends. Windows has no such lock.
    Raises InputError if the folder cannot be written or another run has it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
        if sys.platform != "win32":
            folder = os.open(out, os.O_RDONLY)
            stack.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another run is writing to {out}: wait for it, or give another --out") from None
    except OSError as error:
        raise InputError(f"output folder {out} cannot be written: {error.strerror}") from None


def set_earlier_run_aside(out, status):
    """Move the files of an earlier run to previous-1, previous-2, ... in the same folder.

    resume.pt goes first: if this is interrupted, nothing that is left can be resumed.
    Raises InputError if they cannot be moved.
    """
    files = [out / name for name in ("resume.pt", "checkpoint.pt", "log.csv") if (out / name).exists()]
    if files:
        previous = next(path for n in itertools.count(1) if not (path := out / f"previous-{n}").exists())
        try:
            previous.mkdir()
            for file in files:
                file.rename(previous / file.name)
        except OSError as error:
            raise InputError(f"the earlier run in {out} cannot be moved to {previous}: {error.strerror}") from None
        status.line(f"the files of an earlier run are now in {previous}")


def read_resume(out, argv):
    """Read resume.pt -> (the run's own flags, changed by those in argv; what the file holds).

    Raises InputError if the folder holds another run's checkpoint, or the flags ask for another model or corpus.
    """
    path = out / "resume.pt"
    saved = read_checkpoint(path)
    settings = saved["settings"]
    if "training" not in saved or settings.keys() != vars(parse_arguments([])).keys() - set(NOT_SETTINGS):
        raise InputError(f"{path} is not a resume.pt that this version of train.py wrote")
    if (out / "checkpoint.pt").exists() and read_checkpoint(out / "checkpoint.pt").get("run") != saved.get("run"):
        raise InputError(f"checkpoint.pt and resume.pt in {out} are of different runs: move one of them away")
    args = parse_arguments([*as_flags(settings), *argv])
    for name, value in settings.items():
        if name not in FREE and value != getattr(args, name):
            flag, advice = f"--{name.replace('_', '-')}", "leave the flag out, or train anew without --resume"
            raise InputError(f"{out} was trained with {flag} {value}, not {getattr(args, name)}: {advice}")
    return args, saved


def as_flags(settings):
    """A dict of settings -> the words of a command line that gives them, so that one parser checks both."""
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if type(value) is bool:
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif type(value) is list:
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            words.append(f"--{flag}={value}")
    return words


# --- What is shown -----------------------------------------------------------------------


class Status:
    """What training prints: on a terminal a line that is updated, elsewhere a line now and then, nothing if quiet."""

    def __init__(self, quiet=False):
        self.quiet, self.live = quiet, bool(sys.stdout) and sys.stdout.isatty()
        self.last, self.width = time.monotonic(), 0

    def is_due(self):
        """Whether it is time for an update: five times a second on a terminal, twice a minute elsewhere."""
        return not self.quiet and time.monotonic() - self.last > (0.2 if self.live else 30)

    def update(self, text):
        """Print where training stands; on a terminal the next text takes its place."""
        self.last = time.monotonic()
        text = text[: shutil.get_terminal_size().columns - 1] if self.live else text
        self.line(text, end="" if self.live else "\n")
        self.width = len(text) if self.live else 0

    def line(self, text, end="\n"):
        """Print a line that stays. If standard output is full or closed the run goes on, without a word."""
        try:
            if not self.quiet:
                print(("\r" if self.width else "") + text.ljust(self.width), end=end, flush=True)
        except OSError:
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        self.width = 0


def clock(seconds):
    """Seconds as 1:02:03."""
    return str(datetime.timedelta(seconds=round(seconds)))


def benchmark(argv, corpus, device, status, rounds=12, steps=5):
    """Time training steps of the models, halfway through training, and forward and backward of the two LSTMs alone.

    They take turns, so that changes in the machine's speed affect them equally. Prints for each the median over
    `rounds` turns of `steps` steps, in tokens/s, after its ratio to the one on `torch.nn.LSTM`.
    """
    jobs, cores = {}, {}
    kinds = {name: ["--model", name] for name in MODELS}
    kinds["self-attention"] = ["--model", "attention", "--memory-from", "decoder"]
    for name, flags in kinds.items():
        args = parse_arguments([*argv, *flags])
        model = new_model(args, len(corpus.vocabulary), device)
        trainer = Trainer(model, corpus, args, status, Processes())
        jobs[name] = trainer.training_step, 0.5
        if hasattr(model, "core"):
            cores[f"{name} alone"] = model.core
    x = torch.randn(args.bptt, args.batch_size, cores["lstm alone"].input_size, device=device, requires_grad=True)

    def core_step(core):
        core.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=trainer.bfloat16):
            output, _ = core(x)
        output.sum().backward()

    jobs |= {name: (core_step, core) for name, core in cores.items()}
    speeds = {name: [] for name in jobs}
    for _ in range(1 + rounds):
        for name, (job, argument) in jobs.items():
            begun = time.monotonic()
            for _ in range(steps):
                job(argument)
            torch.ones(1, device=device).item()  # this waits until a GPU has finished
            speeds[name].append(steps * args.bptt * args.batch_size / (time.monotonic() - begun))
    medians = {name: statistics.median(values[1:]) for name, values in speeds.items()}  # the first turn warms up
    for name, median in medians.items():
        base = "lstm alone" if name in cores else "lstm"
        status.line(f"{name:>16}  {median / medians[base]:.2f} of {base}  {median:>9,.0f} tokens/s")


# --- The command -------------------------------------------------------------------------


def parse_arguments(argv):
    """The flags -> a namespace."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size, positive, above_0 = number(int, 1, LARGEST), number(int, 1), number(float, 0, open_low=True)
    fraction = number(float, 0, 0.95)
    yes_or_no = argparse.BooleanOptionalAction
    flag = add_corpus_flags(parser).add_argument
    flag("--data", default="python-docs", help="python-docs, ptb, shakespeare, a text file, or a folder (%(default)s)")
    flag = parser.add_argument_group("model").add_argument
    flag("--model", choices=MODELS, default="cell", help="(%(default)s)")
    flag("--input", choices=["embedding", "one-hot"], default="embedding", help="(%(default)s)")
    flag("--hidden-size", metavar="N", type=size, help="units in a layer (256; attention: 190; from decoder: 240)")
    flag("--embedding-size", metavar="N", type=size, help="numbers for a token (the hidden size)")
    flag("--layers", metavar="N", type=number(int, 1, MOST_LAYERS), default=1, help="stacked LSTMs (%(default)s)")
    flag("--dropout", metavar="X", type=fraction, default=0.4, help="fraction set to 0 (%(default)s)")
    flag("--locked-dropout", action=yes_or_no, default=False, help="drop the same units at all steps of a window (no)")
    flag("--weight-dropout", metavar="X", type=fraction, default=0.0, help="fraction of W_hh set to 0 (%(default)s)")
    flag("--tie-weights", action=yes_or_no, help="one matrix for embedding and output (yes, unless one-hot)")
    flag = parser.add_argument_group("attention").add_argument
    flag("--memory-from", choices=["encoder", "decoder"], default="encoder", help="whose states it sees (%(default)s)")
    flag("--memory", metavar="N", type=size, default=400, help="how many steps back it sees (%(default)s)")
    flag = parser.add_argument_group("training").add_argument
    flag("--batch-size", metavar="N", type=size, default=20, help="parallel streams (%(default)s)")
    flag("--bptt", metavar="N", type=size, default=35, help="steps in a window (%(default)s)")
    flag("--optimizer", choices=["adamw", "sgd"], default="adamw", help="(%(default)s)")
    flag("--lr", metavar="X", type=above_0, default=6e-3, help="learning rate at its peak (%(default)s)")
    flag("--halve-after", metavar="EPOCH", type=positive, help="keep --lr up to here, then halve it each epoch (off)")
    flag("--init", metavar="X", type=above_0, help="draw all weights and biases from -X to X (each as its layer does)")
    flag("--clip", metavar="X", type=above_0, default=0.5, help="largest norm of the gradient (%(default)s)")
    flag("--epochs", metavar="N", type=positive, default=6, help="passes over the corpus (%(default)s)")
    flag("--minutes", metavar="X", type=above_0, help="train for this time instead; the test comes after it (none)")
    flag("--target-ppl", metavar="X", type=number(float, 1), help="stop at this validation perplexity (none)")
    flag("--valid-every", metavar="STEPS", type=positive, help="steps between validations (an epoch)")
    flag("--seed", metavar="N", type=number(int, 0, 2**62), default=1, help="of weights and dropout (%(default)s)")
    flag = parser.add_argument_group("machine and files").add_argument
    flag("--device", default="auto", help="auto, cuda, mps or cpu (%(default)s)")
    flag("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="of products (bfloat16 where fast)")
    flag("--out", metavar="DIR", help="the folder to write to (out/<model>)")
    flag("--benchmark", action="store_true", help="time all models with these flags and train none")
    flag("--resume", metavar="DIR", help="go on with the run in DIR, with its settings")
    args = parser.parse_args(argv)
    default = {"encoder": 190, "decoder": 240}[args.memory_from] if args.model == "attention" else 256
    args.hidden_size = args.hidden_size or default  # so all have as many parameters on python-docs, within 2%
    args.embedding_size = args.embedding_size or args.hidden_size
    if args.tie_weights is None:
        args.tie_weights = args.input == "embedding"
    if args.resume and args.out and pathlib.Path(args.resume).resolve() != pathlib.Path(args.out).resolve():
        parser.error(f"a resumed run stays in its folder: leave out --out {args.out}, or copy {args.resume} first")
    args.out = args.resume or args.out or f"out/{args.model}"
    return args


def prepare(argv, processes, status, stack):
    """Read and check all that training needs -> (the flags, a name for the run, what resume.pt holds or None, Corpus).

    The output folder stays locked until `stack`, an ExitStack, is closed.
    Raises InputError for what the user can correct.
    """
    args, saved, name = parse_arguments(argv), None, uuid.uuid4().hex
    out, restarts = pathlib.Path(args.out), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun is the parent, and the same one in all its restarts
        name = f"torchrun-{os.environ['TORCHELASTIC_RUN_ID']}-{os.getppid()}"
    if args.benchmark and processes.count > 1:
        raise InputError("--benchmark times a single process: start it without torchrun")
    if args.benchmark and (args.locked_dropout or args.weight_dropout):
        raise InputError("--benchmark times torch.nn.LSTM too, which has no --locked-dropout and no --weight-dropout")
    if args.resume and not (out / "resume.pt").exists():
        raise InputError(f"nothing to resume in {out}: it has no resume.pt")
    if not args.benchmark:
        lock(out, stack)
    restarted = restarts and (out / "resume.pt").exists() and read_checkpoint(out / "resume.pt").get("run") == name
    if args.resume or restarted:
        args, saved = read_resume(out, [*argv, "--resume", str(out)])
    device_of(args.device)
    status.line(f"reading {args.data}")
    corpus = load_corpus(args.data, args.level, args.min_count, args.vocab_size, args.split)
    if saved and saved["vocabulary"] != corpus.vocabulary.plain():
        raise InputError(f"{args.data} is not the text that {out} was trained on: its vocabulary differs")
    sizes = ", ".join(f"{len(getattr(corpus, split)):,} {split}" for split in SPLITS)
    status.line(f"{sizes} tokens, {len(corpus.vocabulary):,} different, tokeniser {corpus.vocabulary.tokeniser}")
    if args.batch_size % processes.count:
        raise InputError(f"--batch-size {args.batch_size} cannot be divided by {processes.count} processes")
    return args, saved["run"] if saved else name, saved, corpus


def test(trainer, device):
    """Test the best model, add the result to its checkpoint, and print it with a sample of text -> results dict."""
    args, corpus, status = trainer.args, trainer.corpus, trainer.status
    path = trainer.out / "checkpoint.pt"
    save_checkpoint(path, trainer.best())
    model, vocabulary, checkpoint = load_checkpoint(path, device)
    results = {"valid_ppl": perplexity(trainer.best_loss), "test_ppl": None}

    def shown(nats):
        return f"{perplexity(nats):.2f}" + (f" ({nats:.4f} nats per character)" if args.level == "char" else "")

    status.line(f"best valid perplexity {shown(trainer.best_loss)}, kept in {path}")
    if len(corpus.test):
        nats = evaluate(model, corpus.test.to(device), vocabulary.start)
        results["test_ppl"] = perplexity(nats)
        status.line(f"test perplexity {shown(nats)}")
    else:
        status.line("no test perplexity: this split of the corpus leaves no test text")
    save_checkpoint(path, {**checkpoint, "results": results})
    word = args.level == "word"
    prompt = vocabulary.decode(corpus.valid[: 10 if word else 40])
    steps = continuations(model, vocabulary, prompt, 60 if word else 300, 1, args.seed, temperature=0.7)
    text = detokenise(itertools.chain(prompt, (token for (token,) in steps)), vocabulary.tokeniser)
    status.line(f"\nThe first {len(prompt)} tokens of the validation text, and how {args.model} goes on:\n")
    status.line("".join(text).strip())
    return {**results, "checkpoint": str(path)}


def main(argv=None):
    """Train, test and write a sample; argv is a list of words as in a shell, sys.argv if None.

    Returns a dict with valid_ppl, test_ppl (None without a test text) and checkpoint, the path. After --benchmark, and
    in all processes of torchrun but the first, it returns None.
    Raises InputError for what the user can correct.
    """
    argv = sys.argv[1:] if argv is None else argv
    with Processes() as processes, contextlib.ExitStack() as stack:
        status = Status(quiet=processes.rank > 0)
        args, name, saved, corpus = processes.share(lambda: prepare(argv, processes, status, stack))
        if processes.count > 1 and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before device_of, which uses it
        device = device_of(args.device)
        keep_freed_memory()
        if args.benchmark:
            return benchmark(argv, corpus, device, status)
        model = new_model(args, len(corpus.vocabulary), device)
        trainer = Trainer(model, corpus, args, status, processes, name)
        if not saved and processes.rank == 0:  # not earlier: model and trainer refuse flags that cannot work
            set_earlier_run_aside(trainer.out, status)
        if processes.rank:
            torch.manual_seed(args.seed + processes.rank)  # different dropout in each process
        if saved:
            trainer.resume(saved)
            if trainer.progress() == 1:
                status.line("this run has ended: give more --epochs or --minutes to go on")
        status.line(
            f"{args.model}: {sum(p.numel() for p in model.parameters()):,} parameters on {device}, "
            f"{'bfloat16' if trainer.bfloat16 else 'float32'} products"
            f"{f' (note: {trainer.note})' if trainer.note else ''}, writing to {trainer.out}"
        )
        trainer.train()
        if not trainer.rows:  # interrupted before the first validation
            trainer.validate()
        if processes.rank:
            return None
        return test(trainer, device)


if __name__ == "__main__":
    run(main)

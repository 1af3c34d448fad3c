"""Train a language model, test it, and let it write.

    python train.py --model cell                       # the LSTM written out, on the built-in corpus
    python train.py --model lstm                       # the same on torch.nn.LSTM
    python train.py --model attention                  # encoder, decoder and attention
    python train.py --model cell --minutes 1           # as good as one minute allows
    python train.py --model cell --data my.txt --level char --out out/mine
    python train.py --resume out/cell                  # go on after Ctrl-C

From Python or a notebook:

    import train
    results = train.main(["--model", "cell", "--minutes", "1"])

It writes into --out:

    checkpoint.pt   the best model by validation perplexity, all that sample.py needs
                    (that of an earlier run there becomes checkpoint.previous.pt)
    resume.pt       where training stands, all that --resume needs
    log.csv         a row for each validation

Perplexity is exp(mean of -log P(token) in nats) over a split. Every token of the split
is a target once, and the split is read as one text from beginning to end, its state
carried throughout, as Mikolov et al. (2010) and Zaremba et al. (2014) do; so no batch
size has a say in it. The model is chosen by the validation split; a run reads the test
split once, at its end.

Sizes in comments: T steps (bptt), B streams (batch size), N tokens of a split.
"""

import argparse
import csv
import ctypes
import functools
import inspect
import itertools
import math
import pathlib
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time

from data import SPLITS, InputError, Parser, add_corpus_flags, detokenise, load_corpus, number, pairs, run, streams
from data import windows, write_atomically
import torch

from sample import build_model, continuations, device_of, load_checkpoint, read_checkpoint

MODELS = ["lstm", "cell", "attention"]
COLUMNS = ["step", "epoch", "seconds", "tokens_per_second", "train_loss", "valid_loss", "valid_ppl"]
FIXED = (  # the flags that a resumed run must keep
    "model input embedding_size hidden_size layers dropout tie_weights data level min_count vocab_size split "
    "batch_size bptt"
).split()


def parse_arguments(argv, defaults=None):
    """The flags -> a namespace. defaults: other defaults than those that --help states."""
    parser = Parser(description=inspect.cleandoc(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    positive = number(int, 1)
    corpus = add_corpus_flags(parser)
    corpus.add_argument(
        "--data",
        default="python-docs",
        metavar="TEXT",
        help="python-docs, ptb, shakespeare, a text file, or a folder (%(default)s)",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", choices=MODELS, default="cell", help="(%(default)s)")
    model.add_argument("--input", choices=["embedding", "one-hot"], default="embedding", help="(%(default)s)")
    model.add_argument(
        "--hidden-size",
        metavar="N",
        type=positive,
        help="units in a layer (256; attention, to be of equal size, 192, or 240 with the decoder's memory)",
    )
    model.add_argument("--embedding-size", metavar="N", type=positive, help="numbers for a token (the hidden size)")
    model.add_argument(
        "--layers", metavar="N", type=positive, default=1, help="LSTMs on top of each other (%(default)s)"
    )
    model.add_argument(
        "--dropout", metavar="X", type=number(float, 0, 0.95), default=0.4, help="share set to zero (%(default)s)"
    )
    model.add_argument(
        "--tie-weights",
        action=argparse.BooleanOptionalAction,
        help="one matrix for embedding and output (if it can be)",
    )
    attention = parser.add_argument_group("attention")
    attention.add_argument(
        "--memory-from", choices=["encoder", "decoder"], default="encoder", help="whose states to look at (%(default)s)"
    )
    attention.add_argument("--memory", metavar="N", type=positive, default=400, help="slots in view (%(default)s)")
    training = parser.add_argument_group("training")
    training.add_argument("--batch-size", metavar="N", type=positive, default=20, help="parallel streams (%(default)s)")
    training.add_argument("--bptt", metavar="N", type=positive, default=35, help="steps of a window (%(default)s)")
    training.add_argument(
        "--lr", metavar="X", type=number(float, 0, open_low=True), default=6e-3, help="AdamW's peak (%(default)s)"
    )
    training.add_argument(
        "--clip", metavar="X", type=number(float, 0, open_low=True), default=0.5, help="gradient norm (%(default)s)"
    )
    training.add_argument(
        "--epochs", metavar="N", type=positive, default=6, help="passes over the corpus (%(default)s)"
    )
    training.add_argument(
        "--minutes",
        metavar="X",
        type=number(float, 0, open_low=True),
        help="train for this time instead; the test comes after it (none)",
    )
    training.add_argument(
        "--target-ppl", metavar="X", type=number(float, 1), help="stop at this validation perplexity (none)"
    )
    training.add_argument("--valid-every", type=positive, metavar="STEPS", help="steps between validations (an epoch)")
    training.add_argument(
        "--seed", metavar="N", type=number(int, 0, 2**62), default=1, help="of weights and dropout (%(default)s)"
    )
    machine = parser.add_argument_group("machine and files")
    machine.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (%(default)s)")
    machine.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of products; auto: bfloat16 where fast",
    )
    machine.add_argument("--out", metavar="DIR", help="where to write (out/<model>)")
    machine.add_argument("--benchmark", action="store_true", help="time the three models with these flags, train none")
    machine.add_argument("--resume", metavar="DIR", help="go on with the run in DIR, with its settings")
    parser.set_defaults(**(defaults or {}))
    args = parser.parse_args(argv)
    args.hidden_size = args.hidden_size or default_hidden_size(args.model, args.memory_from)
    args.embedding_size = args.embedding_size or args.hidden_size
    if args.tie_weights is None:
        args.tie_weights = args.input == "embedding"
    args.out = args.resume or args.out or f"out/{args.model}"
    return args


def default_hidden_size(model, memory_from):
    """The hidden size at which all models have equally many parameters on the default corpus, within 2%."""
    return 256 if model != "attention" else 192 if memory_from == "encoder" else 240


# --- Evaluation --------------------------------------------------------------------------


@torch.inference_mode()
def evaluate(model, tokens, start, chunk=256):
    """Mean of -log P(token) in nats over a split, each of its N tokens a target exactly once.

    The split is one stream, read in chunks of `chunk` tokens with the state carried; neither
    the training batch size nor the chunk changes the result.  tokens: int64 (N,).
    start: the token that the first is predicted from.
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
    """exp(nats), infinite where a float ends."""
    return math.exp(nats) if nats < 700 else math.inf


# --- Training ----------------------------------------------------------------------------


def schedule(progress):
    """The learning rate's share of its peak: a short rise, then a cosine down to zero. progress: 0 to 1."""
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
    """Have memory that one training step frees serve the next one, where the C library is glibc.

    By default blocks of some megabytes go back to the system, and fetching them again,
    page by page, took up to a quarter of a step.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h; sizes in bytes
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)


class Status:
    """What training says: one live line on a terminal, a plain line now and then elsewhere."""

    def __init__(self):
        self.live, self.last, self.width = sys.stdout.isatty(), time.monotonic(), 0

    def is_due(self):
        """Whether it is time to tell again: some times a second, or every half minute in a file."""
        return time.monotonic() - self.last > (0.2 if self.live else 30)

    def update(self, text):
        """Show where training stands."""
        self.last = time.monotonic()
        text = text[: shutil.get_terminal_size().columns - 1] if self.live else text
        print("\r" + text.ljust(self.width) if self.live else text, end="" if self.live else "\n", flush=True)
        self.width = len(text) if self.live else 0

    def line(self, text):
        """Show a line that stays."""
        print(("\r" if self.width else "") + text.ljust(self.width), flush=True)
        self.width = 0


def clock(seconds):
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def prepare_output(args):
    """Make --out and find out now, not after training, that files can be written there.

    Raises InputError if they cannot.
    """
    out = pathlib.Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise InputError(f"output folder {out} cannot be written: {error.strerror}") from None
    return out


def read_resume(directory, argv):
    """What --resume DIR goes on from -> (namespace with the run's own settings as defaults, its dict).

    Raises InputError if DIR holds no such run, or flags ask for another model or corpus.
    """
    path = pathlib.Path(directory) / "resume.pt"
    if not path.exists():
        raise InputError(f"nothing to resume in {directory}: it has no resume.pt")
    saved = read_checkpoint(path)
    if "optimizer" not in saved:
        raise InputError(f"{path} is not a resume.pt that train.py wrote")
    args = parse_arguments(argv, defaults=saved["settings"])
    for name in FIXED:
        kept, asked = saved["settings"][name], getattr(args, name)
        if kept != asked:
            flag = "--" + name.replace("_", "-")
            advice = "leave the flag out, or train anew without --resume"
            raise InputError(f"{directory} was trained with {flag} {kept}, not {asked}: {advice}")
    return args, saved


class Trainer:
    """A training run: where it stands, its next step, and what it leaves on disk.

    model: a LanguageModel on its device.  corpus: a Corpus.  args: the flags.
    out: the folder for checkpoint.pt, resume.pt and log.csv.  status: a Status.
    """

    def __init__(self, model, corpus, args, out, status):
        self.model, self.vocabulary, self.args, self.out, self.status = model, corpus.vocabulary, args, out, status
        self.device = next(model.parameters()).device
        sides = (streams(side, args.batch_size).to(self.device) for side in pairs(corpus.train, self.vocabulary.start))
        self.batches = list(windows(*sides, args.bptt))  # (input, target), (T, B) each
        self.valid = corpus.valid.to(self.device)
        self.optimizer = torch.optim.AdamW(model.parameters(), args.lr, fused=self.device.type != "mps")
        self.step, self.state, self.best, self.interrupted = 0, None, math.inf, False
        self.begun, self.resumed = time.monotonic(), False
        self.start_interval()

    def start_interval(self):
        """Begin to count anew what is reported at each validation.

        The losses are summed, not kept: a small tensor from each step, in the midst of freed large ones, would keep
        the next large ones from fitting there, and memory would grow.
        """
        self.total, self.recent = torch.zeros(2, device=self.device)  # sum of the losses, mean of about the last 50
        self.count, self.tokens, self.seconds = 0, 0, 1e-9

    def progress(self):
        """How much of the training is done, 0 to 1: of the minutes, if they are given, else of the epochs."""
        if self.args.minutes:
            return min(1.0, (time.monotonic() - self.begun) / (60 * self.args.minutes))
        return min(1.0, self.step / (self.args.epochs * len(self.batches)))

    def train(self):
        """Train until the epochs, the minutes or the target are reached, or Ctrl-C; validate and save on the way.

        Raises InputError when the loss is no number any more.
        """

        def interrupt(*_):
            self.interrupted = True
            handle_interrupt(before)  # a second Ctrl-C ends it at once

        before = handle_interrupt(interrupt)
        every = self.args.valid_every or len(self.batches)
        self.model.train()
        try:
            while (
                (self.step == 0 or self.progress() < 1)
                and not self.interrupted
                and perplexity(self.best) > (self.args.target_ppl or 0)
            ):
                self.training_step()
                if self.step % every == 0:
                    self.validate()
                    self.save_resume()
                elif self.status.is_due():
                    self.show()
            if self.interrupted:
                self.save_resume()  # before a validation, so that a resumed run is none the wiser
                self.status.line("stopping: saved; now the test of the best model (Ctrl-C again ends at once)")
                if self.best == math.inf:
                    self.validate()
            elif self.count:
                self.validate()
                self.save_resume()
        finally:
            handle_interrupt(before)

    def training_step(self):
        """One window forward and backward, one step of the optimizer; the state goes on to the next window."""
        begun, position = time.monotonic(), self.step % len(self.batches)
        input, target = self.batches[position]
        for group in self.optimizer.param_groups:  # torch's schedulers count steps; progress may count time
            group["lr"] = self.args.lr * schedule(self.progress())
        self.optimizer.zero_grad(set_to_none=True)
        self.model.grow(self.progress())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bfloat16):
            loss, state = self.model.loss(input, target, self.state if position else None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip)
        self.optimizer.step()
        self.state = tuple(part.detach() for part in state)  # the gradient ends at the window's edge
        self.step += 1
        self.count += 1
        self.total += loss.detach()
        self.recent.lerp_(loss.detach(), 1 / min(self.count, 50))
        self.tokens += target.numel()
        self.seconds += time.monotonic() - begun

    def mean_loss(self):
        """Mean of the losses since the last validation; InputError if it is no number."""
        return self.checked(self.total.item() / self.count)

    def checked(self, loss):
        """The loss, if it is a number.  Raises InputError, before anything is saved, if it is not."""
        if not math.isfinite(loss):
            best = self.out / "checkpoint.pt"
            kept = f"; {best} holds the best model before that" if self.best < math.inf else ""
            raise InputError(f"the loss became {loss} by step {self.step}: try a lower --lr or --clip{kept}")
        return loss

    def show(self):
        """Tell how it goes."""
        recent, done = self.checked(self.recent.item()), self.progress()
        left = (time.monotonic() - self.begun) * (1 - done) / max(done, 1e-9)
        self.status.update(
            f"epoch {self.step / len(self.batches):5.2f}  step {self.step:>5}  loss {recent:.3f}  "
            f"ppl {perplexity(recent):7.2f}  {self.tokens / self.seconds:>6,.0f} tokens/s  {clock(left)} left"
        )

    def validate(self):
        """Evaluate on the validation split; log it and keep the model if it is the best.

        Raises InputError, before anything is saved, when a loss is no number any more.
        """
        train_loss = self.mean_loss()
        valid_loss = self.checked(evaluate(self.model, self.valid, self.vocabulary.start))
        epoch, spent, speed = self.step / len(self.batches), time.monotonic() - self.begun, self.tokens / self.seconds
        ppl = perplexity(valid_loss)
        row = (
            self.step,
            f"{epoch:.2f}",
            f"{spent:.1f}",
            f"{speed:.0f}",
            f"{train_loss:.4f}",
            f"{valid_loss:.4f}",
            f"{ppl:.2f}",
        )
        log = self.out / "log.csv"
        append = (self.resumed or self.best < math.inf) and log.exists()
        with open(log, "a" if append else "w", newline="") as file:
            csv.writer(file).writerows([row] if append else [COLUMNS, row])
        self.status.line(
            f"epoch {epoch:5.2f}  step {self.step:>5}  ppl train {perplexity(train_loss):7.2f} valid {ppl:7.2f}"
            f"  {speed:>6,.0f} tokens/s  {clock(spent)}"
        )
        if valid_loss < self.best:
            checkpoint = self.out / "checkpoint.pt"
            if self.best == math.inf and not self.resumed and checkpoint.exists():  # an earlier run's
                checkpoint.replace(self.out / "checkpoint.previous.pt")
                self.status.line("the checkpoint of an earlier run is now checkpoint.previous.pt")
            self.best = valid_loss
            save(checkpoint, checkpoint_dict(self.model, self.vocabulary, self.args, {"valid_ppl": ppl}))
        self.start_interval()

    def save_resume(self):
        """Save all that `resume` needs to go on as if nothing had happened; InputError for a loss that is no number."""
        if self.count:
            self.mean_loss()
        contents = {
            **checkpoint_dict(self.model, self.vocabulary, self.args, {}),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "state": self.state,
            "best": self.best,
            "seconds": time.monotonic() - self.begun,
            "interval": (self.total, self.recent, self.count, self.tokens, self.seconds),
            "random": torch.get_rng_state(),
        }
        save(self.out / "resume.pt", contents)

    def resume(self, saved):
        """Take up what `save_resume` saved."""
        self.model.load_state_dict(saved["weights"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.best, self.resumed = saved["step"], saved["best"], True
        self.state = tuple(part.to(self.device) for part in saved["state"])
        self.begun = time.monotonic() - saved["seconds"]
        total, recent, self.count, self.tokens, self.seconds = saved["interval"]
        self.total, self.recent = total.to(self.device), recent.to(self.device)
        torch.set_rng_state(saved["random"])


def benchmark(args, corpus, device, out, status, rounds=12, steps=5):
    """Time the three models' training steps, and forward and backward of the two LSTMs alone.

    They take turns, so that a change in the machine's pace meets all alike. Prints for each the median over `rounds`
    turns of `steps` steps, in tokens/s, after its ratio to the one on `torch.nn.LSTM`.
    """
    trainers = {}
    for name in MODELS:
        torch.manual_seed(args.seed)
        settings = {**vars(args), "model": name}
        model = build_model(settings, len(corpus.vocabulary)).to(device).train()
        trainers[name] = Trainer(model, corpus, args, out, status)
    cores = {f"{name} alone": trainers[name].model.core for name in ("lstm", "cell")}
    T, B, E = args.bptt, args.batch_size, cores["lstm alone"].input_size
    x = torch.randn(T, B, E, device=device, requires_grad=True)

    def core_step(core):
        core.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
            output, _ = core(x)
        output.sum().backward()

    jobs = {name: trainer.training_step for name, trainer in trainers.items()}
    jobs.update((name, functools.partial(core_step, core)) for name, core in cores.items())
    speeds = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            begun = time.monotonic()
            for _ in range(steps):
                job()
            torch.ones(1, device=device).item()  # a GPU is waited for
            if turn:  # the first is to warm up
                speeds[name].append(steps * T * B / (time.monotonic() - begun))
    for name in jobs:
        against = "lstm alone" if name in cores else "lstm"
        median = statistics.median(speeds[name])
        status.line(
            f"{name:>10}  {median / statistics.median(speeds[against]):.2f} of {against}  {median:>9,.0f} tokens/s"
        )


def handle_interrupt(handler):
    """Set what Ctrl-C does and return what it did; outside the main thread it can't be set, nor arrives."""
    try:
        return signal.signal(signal.SIGINT, handler)
    except (ValueError, TypeError):
        return None


def checkpoint_dict(model, vocabulary, args, results):
    """All that sampling needs, in plain types that `torch.load(weights_only=True)` reads."""
    return {
        "settings": {name: value for name, value in vars(args).items() if name not in ("resume", "out", "benchmark")},
        "vocabulary": {"index2word": vocabulary.index2word, "tokeniser": vocabulary.tokeniser},
        "weights": model.state_dict(),
        "results": results,
    }


def save(path, contents):
    """Write a dict with torch.save, whole or not at all."""
    write_atomically(path, lambda file: torch.save(contents, file))


# --- The command -------------------------------------------------------------------------


def main(argv=None):
    """Train, test and write a sample; argv is a list of words as in a shell, sys.argv if None.

    Returns a dict with valid_ppl, test_ppl and checkpoint, the path; None after --benchmark.
    Raises InputError for whatever the user can mend.
    """
    args, saved = parse_arguments(argv), None
    if args.resume:
        args, saved = read_resume(args.resume, argv)
    out = pathlib.Path(args.out) if args.benchmark else prepare_output(args)
    device, status = device_of(args.device), Status()
    args.bfloat16, note = low_precision(args.dtype, device)
    keep_freed_memory()
    torch.manual_seed(args.seed)
    status.line(f"reading {args.data}")
    corpus = load_corpus(args.data, args.level, args.min_count, args.vocab_size, args.split)
    if saved and saved["vocabulary"]["index2word"] != corpus.vocabulary.index2word:
        raise InputError(f"{args.data} is not the text that {args.resume} was trained on: it gives another vocabulary")
    sizes = ", ".join(f"{len(getattr(corpus, split)):,} {split}" for split in SPLITS)
    status.line(f"{sizes} tokens, {len(corpus.vocabulary):,} different, tokeniser {corpus.vocabulary.tokeniser}")
    if args.benchmark:
        return benchmark(args, corpus, device, out, status)
    model = build_model(vars(args), len(corpus.vocabulary)).to(device)
    trainer = Trainer(model, corpus, args, out, status)
    if saved:
        trainer.resume(saved)
        if trainer.progress() == 1:
            status.line("this run has ended: give more --epochs or --minutes to go on")
    status.line(
        f"{args.model}: {sum(p.numel() for p in model.parameters()):,} parameters on {device}, "
        f"{'bfloat16' if args.bfloat16 else 'float32'} products{f' (note: {note})' if note else ''}, writing to {out}"
    )
    trainer.train()
    if trainer.interrupted:
        status.line(f"interrupted; go on with: python train.py --resume {out}")
    model, vocabulary, checkpoint = load_checkpoint(out / "checkpoint.pt", device)
    nats = evaluate(model, corpus.test.to(device), vocabulary.start)
    results = {"valid_ppl": perplexity(trainer.best), "test_ppl": perplexity(nats)}
    save(out / "checkpoint.pt", {**checkpoint, "results": results})
    status.line(f"best valid perplexity {results['valid_ppl']:.2f}, kept in {out / 'checkpoint.pt'}")
    per_token = f" ({nats:.4f} nats per character)" if args.level == "char" else ""
    status.line(f"test perplexity {results['test_ppl']:.2f}{per_token}")
    word = args.level == "word"
    prompt = vocabulary.decode(corpus.valid[: 10 if word else 40])
    steps = continuations(model, vocabulary, prompt, 60 if word else 300, 1, args.seed, temperature=0.7)
    text = detokenise(itertools.chain(prompt, (token for (token,) in steps)), vocabulary.tokeniser)
    print(
        f"\nThe first {len(prompt)} tokens of the validation text, and how {args.model} goes on:\n\n"
        + "".join(text).strip()
    )
    return {**results, "checkpoint": str(out / "checkpoint.pt")}


if __name__ == "__main__":
    run(main)

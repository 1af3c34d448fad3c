"""Train a language model, test it, and let it write.

    python train.py --model cell                       # the LSTM written out, on the built-in corpus
    python train.py --model lstm                       # the same on torch.nn.LSTM
    python train.py --model attention --no-copy        # an encoder, a decoder and attention
    python train.py --model attention                  # and copying
    python train.py --model self-attention             # copying, too, but no encoder
    python train.py --model cell --minutes 1           # one minute of training
    python train.py --model cell --data my.txt --level char --out out/mine
    python train.py --resume out/cell                  # go on after Ctrl-C, a kill or a power cut
    torchrun --nproc_per_node=2 train.py --model cell  # one model, trained by two processes, for two GPUs

From Python or a notebook: `train.main(["--model", "cell", "--minutes", "1"])`.

A run is a new folder: out/cell, then out/cell-2, and so on. It holds

    checkpoint.pt   the best model by validation perplexity, for sample.py, and all that --resume needs
    log.csv         one row for each validation: the step, the epoch (a pass over the text), the seconds so far, the
                    training tokens per second, the training and the validation loss in nats, the validation perplexity

checkpoint.pt is written at the start, once a minute, after each validation and at the end. A new file replaces the old
one in one step, so there is a whole one at every moment, and however a run ends, --resume goes on from there. A run of
one process with --epochs and a fixed --threads (sums depend on it) ends with the same weights as without the stop.

Perplexity is exp(mean of -log P(token) in nats) over a split. Every token of the split is a target once. The split is
read as one text from beginning to end with its state carried, as Mikolov et al. (2010) and Zaremba et al. (2014) do, so
perplexity does not depend on the batch size. The validation split chooses the model; the test split is read once.

Sizes in comments: T steps (bptt), B streams (batch size), N tokens of a split.
"""

import copy
import dataclasses
import datetime
import functools
import itertools
import math
import os
import pathlib
import shlex
import shutil
import sys
import time

import data  # before torch, see there
import torch
import torch.distributed as dist
from torch import nn

import attention_lm
import sample
from data import InputError, at_least

OPTIMIZERS = {  # fused: all of a tensor's update in one operation, three times as fast
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "sgd": functools.partial(torch.optim.SGD, fused=True),
}
SAVE_EVERY = 60  # seconds
NOT_SETTINGS = ("resume", "out")  # not saved: where a run is written
# the flags that may change when a run is resumed
FREE = "data lr halve_after clip epochs minutes target_ppl valid_every device dtype threads".split()

# --- Evaluation ----------------------------------------------------------------------------


@torch.inference_mode()
def evaluate(model, tokens, start, chunk=256):
    """Mean of -log P(token) in nats over a split, with each of its N tokens a target exactly once.

    The split is read as one stream; the length of a chunk does not change the result.
    tokens: integers (N,).  start: the token before the first.
    """
    training, total, state = model.training, 0.0, None
    model.eval()
    input, target = (side[:, None] for side in data.pairs(tokens, start))  # (N, 1)
    for x, y in data.windows(input, target, chunk):
        loss, state = model.loss(x, y, state)
        total += loss.item() * len(y)
    model.train(training)
    return total / len(tokens)


def perplexity(nats):
    """exp(nats), or inf where that is too large for a float."""
    return math.exp(nats) if nats < 700 else math.inf


def continuation(model, corpus, given, length, seed=0):
    """The first tokens of the validation text, and how a model goes on: a text of about `length` characters.

    given: how many tokens are from the validation text.
    """
    training, vocabulary = model.training, corpus.vocabulary
    prompt, text = vocabulary.decode(corpus.valid[:given]), ""
    how = {"seed": seed, "temperature": sample.DEFAULT_TEMPERATURE}
    steps = sample.continuations(model.eval(), vocabulary, prompt, length, **how)
    for piece in vocabulary.join(itertools.chain(prompt, (token for (token,) in steps))):
        text += piece
        if len(text) >= length:
            break
    model.train(training)
    return text.strip()


# --- Training ------------------------------------------------------------------------------


def schedule(progress, epoch=1, halve_after=None):
    """The learning rate as a fraction of its peak.

    progress: of the whole training, from 0 to 1.  epoch: counted from 1; it matters for halve_after only.
    It rises from 2% over the first 3% of the training and then falls along a cosine to zero. With halve_after it is 1 up
    to that epoch and is halved at each later one, as in Zaremba et al. (2014).
    """
    if halve_after:
        return 0.5 ** max(0, epoch - halve_after)
    return min(1.0, progress / 0.03 + 0.02) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclasses.dataclass
class Counters:
    """How far a run is. They are saved and resumed as a whole."""

    step: int = 0
    seconds: float = 0.0  # of training so far, with validations
    best_loss: float = math.inf  # the smallest validation loss
    validated: int = 0  # the step of the last validation
    validated_at: float = 0.0  # the second of its end
    tokens: int = 0  # trained on since then
    loss_sum: float = 0.0  # of the training losses since then
    log: str = "step,epoch,seconds,tokens_per_second,train_loss,valid_loss,valid_ppl\n"


class Run:
    """A model in training, and its next step.

    args: the flags.  corpus: a Corpus.  device: a torch.device.
    rank, processes: the number of this process, from 0, and how many there are: see `join_processes`.
    Raises InputError for flags that contradict each other, and for a batch that cannot be shared.
    """

    def __init__(self, args, corpus, device, rank=0, processes=1):
        if args.batch_size % processes:
            raise InputError(f"--batch-size {args.batch_size} cannot be divided by {processes} processes")
        self.args, self.corpus, self.device, self.rank, self.processes = args, corpus, device, rank, processes
        torch.manual_seed(args.seed)
        try:
            self.model = attention_lm.MODELS[args.model](len(corpus.vocabulary), vars(args)).to(device)
        except ValueError as error:
            raise InputError(str(error)) from None
        if args.init:
            for parameter in self.model.parameters():
                nn.init.uniform_(parameter, -args.init, args.init)
        self.loss = self.model.loss
        if dist.is_initialized():
            self.loss = nn.parallel.DistributedDataParallel(Loss(self.model))
        optimizer = OPTIMIZERS[args.optimizer]
        self.optimizer = optimizer(self.model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
        sides = [data.streams(side, args.batch_size) for side in data.pairs(corpus.train, corpus.vocabulary.start)]
        self.input, self.target = (side.chunk(processes, dim=1)[rank].to(device) for side in sides)  # (N / B, B) each
        self.steps_per_epoch = math.ceil(len(self.input) / args.bptt)
        self.text = text_sums(corpus)
        self.counters, self.state, self.best = Counters(), None, None
        self.begun = time.monotonic()

    def progress(self):
        """How much of the training is done: 1 when the minutes, the epochs or the target perplexity are reached.

        It also updates counters.seconds.
        """
        counters, args = self.counters, self.args
        counters.seconds = time.monotonic() - self.begun
        if args.target_ppl and perplexity(counters.best_loss) <= args.target_ppl:
            return 1.0
        if args.minutes:
            done = counters.seconds / (60 * args.minutes)
        else:
            done = counters.step / (args.epochs * self.steps_per_epoch)
        return min(1.0, done) if counters.step else 0.0  # at least one step, however few the minutes

    def training_step(self, progress):
        """One window forward and backward and one step of the optimizer, at a progress from 0 to 1 -> the loss."""
        counters, args = self.counters, self.args
        epoch, position = divmod(counters.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:  # torch's schedulers count steps, but progress may count time
            group["lr"] = args.lr * schedule(progress, 1 + epoch, args.halve_after)
        # Dropout depends on the step alone, so a run that is resumed draws what it would have drawn.
        torch.manual_seed(args.seed * 10**9 + counters.step * self.processes + self.rank)
        input, target = data.window(self.input, self.target, args.bptt, position)  # (T, B)
        state = self.state if position else None  # an epoch begins with no state
        with torch.autocast(self.device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss, state = self.loss(input, target, state)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), args.clip)
        self.optimizer.step()
        self.state = tuple(part.detach() for part in state)  # the gradient ends at the edge of the window
        counters.step += 1
        counters.tokens += input.numel() * self.processes
        counters.loss_sum += loss.detach()  # a tensor from here on: reading its value would make a GPU wait
        return loss.detach()

    def since_validation(self):
        """The mean of this process's losses since the last validation, and the tokens per second of all processes."""
        counters = self.counters
        seconds = time.monotonic() - self.begun - counters.validated_at
        loss = float(counters.loss_sum) / max(1, counters.step - counters.validated)
        return loss, counters.tokens / max(1e-9, seconds)


def train(run, out):
    """Train until the epochs, the minutes or the target perplexity are reached, and save to the folder `out`.

    Raises InputError when a weight becomes inf or nan.
    """
    counters, every = run.counters, run.args.valid_every or run.steps_per_epoch
    run.model.train()
    if counters.step == 0:
        save(run, out)
        show_writing(run)
    trials = thread_trials(run)
    saved = shown = time.monotonic()
    while (progress := from_first(run.progress())) < 1:  # several processes must stop at the same step
        if time.monotonic() - saved > SAVE_EVERY:
            save(run, out)
            saved = time.monotonic()
        next(trials, None)  # the first steps try out numbers of threads
        run.training_step(progress)
        if counters.step % every == 0:
            validate(run, out)
        elif time.monotonic() - shown > (0.2 if sys.stdout.isatty() else 30):
            show(status(run, progress), passing=True)
            shown = time.monotonic()
    if counters.validated < counters.step:  # the end came between two validations
        validate(run, out)


def validate(run, out):
    """Evaluate on the validation split, keep the weights if they are the best so far, save, and let the model write."""
    counters, (train_loss, speed) = run.counters, run.since_validation()
    loss = evaluate(run.model, run.corpus.valid.to(run.device), run.corpus.vocabulary.start)
    if loss < counters.best_loss:
        counters.best_loss, run.best = loss, copy.deepcopy(run.model.state_dict())
    epoch, ppl, seconds = counters.step / run.steps_per_epoch, perplexity(loss), time.monotonic() - run.begun
    row = f"{counters.step},{epoch:.2f},{seconds:.1f},{speed:.0f},{train_loss:.4f},{loss:.4f},{ppl:.2f}"
    counters.log += row + "\n"
    counters.validated, counters.validated_at, counters.seconds = counters.step, seconds, seconds
    counters.tokens, counters.loss_sum = 0, 0.0
    where = f"epoch {epoch:5.2f}  step {counters.step:>5}  ppl train {perplexity(train_loss):7.2f} valid {ppl:7.2f}"
    show(f"{where}  {speed:>6,.0f} tokens/s  {datetime.timedelta(seconds=round(seconds))}")
    save(run, out)  # weights that are inf or nan end the run here
    show_writing(run)
    counters.validated_at = time.monotonic() - run.begun  # the speed is that of training alone


def test(run, out):
    """Test the best model, add the result to its checkpoint, and let it write -> results dict."""
    path, nats = out / "checkpoint.pt", run.counters.best_loss
    model, vocabulary, checkpoint = sample.load_checkpoint(path, run.device)
    results = {"valid_ppl": perplexity(nats), "test_ppl": None}
    show(f"best valid perplexity {results['valid_ppl']:.2f} ({nats:.4f} nats per token), kept in {path}")
    if len(run.corpus.test):
        nats = evaluate(model, run.corpus.test.to(run.device), vocabulary.start)
        results["test_ppl"] = perplexity(nats)
        show(f"test perplexity {results['test_ppl']:.2f} ({nats:.4f} nats per token)")
    else:
        show("no test perplexity: this split of the corpus leaves no test text")
    sample.save_checkpoint(path, {**checkpoint, "results": results})
    show(f"\nThe first words of the validation text, and how {run.args.model} goes on:\n")
    show(continuation(model, run.corpus, given=10, length=400, seed=run.args.seed))
    return {**results, "checkpoint": str(path)}


# --- The rest is not about language models: skip it on a first reading ------------------------


def thread_trials(run):
    """Set the number of threads before each of the first steps, a `next` for each: 1, 2, 4, ... and all in turn.

    After three steps with each number, the fastest stays. Many small operations can be slower with more threads.
    A number that the user gives stays, and a GPU needs no trials.
    """
    given, most = run.args.threads or "OMP_NUM_THREADS" in os.environ, torch.get_num_threads()
    if given or run.device.type != "cpu":
        return
    seconds = {**{2**k: math.inf for k in range((most - 1).bit_length())}, most: math.inf}  # {threads: of one step}
    for threads in [*seconds] * 3:
        torch.set_num_threads(threads)
        begun = time.monotonic()
        yield
        seconds[threads] = min(seconds[threads], time.monotonic() - begun)
    torch.set_num_threads(min(seconds, key=seconds.get))


# --- Several processes -----------------------------------------------------------------------
#
# torchrun starts N processes. Each trains on B / N of the B streams, and DistributedDataParallel averages their
# gradients, so that together they take the step that one process would take. (Their dropout differs.) All validate; the
# first, rank 0, also prints, saves and tests. Use one process for each GPU; on one CPU, one process is faster.


def join_processes():
    """Join the processes that torchrun started -> this one's rank, and their number; 0 and 1 without torchrun."""
    if "RANK" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group()
    if dist.get_rank() > 0:
        sys.stdout = open(os.devnull, "w")
    return dist.get_rank(), dist.get_world_size()


def from_first(value):
    """A float of rank 0, in all processes."""
    if not dist.is_initialized():
        return value
    value = torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(value, src=0)
    return value.item()


class Loss(nn.Module):
    """A model whose call is its `loss`: DistributedDataParallel passes on no other call."""

    def __init__(self, model):
        super().__init__()
        self.model, self.forward = model, model.loss


# --- A run's file and folder --------------------------------------------------------------------


def text_sums(corpus):
    """The number of tokens in each split and the sum of their numbers: they tell one text from another."""
    return [(len(tokens), int(tokens.sum())) for tokens in corpus[1:]]


def is_text_of(checkpoint, corpus):
    """Whether a run was trained on this corpus, as far as its vocabulary and `text_sums` tell."""
    same_text = [tuple(sums) for sums in checkpoint["training"]["text"]] == text_sums(corpus)
    return same_text and checkpoint["vocabulary"] == corpus.vocabulary.plain()


def save(run, out):
    """Write a run's files to the folder `out`, in the first process.  Raises InputError when a weight is inf or nan."""
    if run.rank:
        return
    if not all(parameter.isfinite().all() for parameter in run.model.parameters()):
        advice = f"try a lower --lr or --clip; {out / 'checkpoint.pt'} holds the run before that"
        raise InputError(f"the weights became inf or nan by step {run.counters.step}: {advice}")
    checkpoint = {
        "settings": {name: value for name, value in vars(run.args).items() if name not in NOT_SETTINGS},
        "vocabulary": run.corpus.vocabulary.plain(),
        "weights": run.best or run.model.state_dict(),
        "results": {"valid_ppl": perplexity(run.counters.best_loss)} if run.best else {},
        "training": {
            "text": run.text,
            "counters": {**vars(run.counters), "loss_sum": float(run.counters.loss_sum)},
            "weights": run.model.state_dict(),  # after the last step
            "optimizer": run.optimizer.state_dict(),
            "state": run.state if run.processes == 1 else None,  # several processes have several; they begin anew
        },
    }
    sample.save_checkpoint(out / "checkpoint.pt", checkpoint)
    (out / "log.csv").write_text(run.counters.log)


def restore(run, checkpoint):
    """Let a run go on from what `save` wrote.  Raises InputError for another text, version or model."""
    training = checkpoint["training"]
    if "text" not in training:
        raise InputError(f"{run.args.resume} is of another version of train.py: train anew without --resume")
    if not is_text_of(checkpoint, run.corpus):
        raise InputError(f"{run.args.data or 'this corpus'} is not the text that {run.args.resume} was trained on")
    known = {field.name for field in dataclasses.fields(Counters)}  # a file of another version may have more
    run.counters = Counters(**{name: value for name, value in training["counters"].items() if name in known})
    run.best = checkpoint["weights"] if run.counters.validated else None
    run.begun = time.monotonic() - run.counters.seconds
    run.model.load_state_dict(training["weights"])
    run.optimizer.load_state_dict(training["optimizer"])
    for parameter, state in run.optimizer.state.items():  # a fused step would write beyond the end of a smaller tensor
        if any(part.shape != parameter.shape for name, part in state.items() if name != "step"):
            raise InputError(f"{run.args.resume} cannot go on: its optimizer is of another model")
    if run.processes == 1 and training["state"] is not None:
        run.state = tuple(part.to(run.device) for part in training["state"])


def new_folder(args):
    """Make the folder of a run -> a path: --out, or the first of out/cell, out/cell-2, ... that is free."""
    name = args.out or f"out/{args.model}" + ("" if args.copy else "-no-copy")
    for n in itertools.count(1):
        out = pathlib.Path(name if n == 1 else f"{name}-{n}")
        try:
            out.mkdir(parents=True)  # of several runs that begin at the same moment, only one can do this
            return out
        except FileExistsError:
            if args.out:
                advice = f"give another --out, or go on with --resume {shlex.quote(args.out)}"
                raise InputError(f"{out} exists: {advice}") from None


# --- What is shown ---------------------------------------------------------------------------


def show(text, passing=False):
    """Print a line. On a terminal, the next line takes the place of one that is passing, which is cut to the width."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        text = f"{text[:width] if passing else text:<{width}}"
        print(text, end="\r" if passing else "\n", flush=True)
    else:
        print(text, flush=True)


def show_writing(run):
    """Show a line that the model writes, from the same three tokens each time."""
    show("    " + " ".join(continuation(run.model, run.corpus, given=3, length=75).split()))


def status(run, progress):
    """Where a run stands, in a line."""
    counters, (loss, speed) = run.counters, run.since_validation()
    where = f"epoch {counters.step / run.steps_per_epoch:5.2f}  step {counters.step:>5}"
    left = datetime.timedelta(seconds=round(counters.seconds * (1 - progress) / max(progress, 1e-9)))
    left = f"  {left} left" if progress else ""
    return f"{where}  loss {loss:.3f}  ppl {perplexity(loss):7.2f}  {speed:>6,.0f} tokens/s{left}"


# --- The command -----------------------------------------------------------------------------


def make_parser():
    """The parser of the flags. Those of the corpus and of the models are added where they are used."""
    parser = data.Parser(__doc__)
    positive, above_0 = at_least(1), at_least(1e-9, float)
    flag = data.add_corpus_flags(parser).add_argument
    flag("--data", default="python-docs", help="python-docs, ptb, shakespeare, a text file, or a folder (%(default)s)")
    attention_lm.add_model_flags(parser)
    training = parser.add_argument_group("training")
    flag = training.add_argument
    flag("--batch-size", metavar="N", type=positive, default=20, help="parallel streams (%(default)s)")
    flag("--bptt", metavar="N", type=positive, default=35, help="steps in a window (%(default)s)")
    flag("--optimizer", choices=list(OPTIMIZERS), default="adamw", help="(%(default)s)")
    flag("--lr", metavar="X", type=above_0, default=6e-3, help="learning rate at its peak (%(default)s)")
    flag("--weight-decay", metavar="X", type=at_least(0, float), help="pull of the weights to 0 (0.2; 0 with sgd)")
    flag("--halve-after", metavar="N", type=positive, help="keep --lr up to this epoch, then halve it each epoch (off)")
    flag("--init", metavar="X", type=above_0, help="draw all weights and biases from -X to X (each as its layer does)")
    flag("--clip", metavar="X", type=above_0, default=0.5, help="largest norm of the gradient (%(default)s)")
    either = training.add_mutually_exclusive_group().add_argument
    either("--epochs", metavar="N", type=positive, help="passes over the corpus (6)")
    either("--minutes", metavar="X", type=above_0, help="train for this time instead; the test comes after it (none)")
    flag("--target-ppl", metavar="X", type=at_least(1, float), help="stop at this validation perplexity (none)")
    flag("--valid-every", metavar="STEPS", type=positive, help="steps between validations (an epoch)")
    flag("--seed", metavar="N", type=at_least(0), default=1, help="of weights and dropout (%(default)s)")
    machine = parser.add_argument_group("machine and files")
    flag = machine.add_argument
    flag("--device", default="auto", help="auto, cuda, mps or cpu (%(default)s)")
    flag("--dtype", choices=["float32", "bfloat16"], default="float32", help="of products (%(default)s)")
    flag("--threads", metavar="N", type=positive, help="of the CPU (what is fastest in the first steps)")
    either = machine.add_mutually_exclusive_group().add_argument
    either("--out", metavar="DIR", help="a new folder to write to (out/cell, or the first free of out/cell-2, ...)")
    either("--resume", metavar="DIR", type=run_folder, help="go on with the run in DIR, or begin one there")
    return parser


def parse_arguments(argv, settings=None):
    """The flags -> a namespace.  settings: those of a run that goes on; flags in argv may change some of them."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if settings:  # parsed again, with the settings in place of the defaults
        if args.epochs or args.minutes:
            settings = {**settings, "epochs": None, "minutes": None}
        parser.set_defaults(**settings)
        args = parser.parse_args(argv)
        for name, value in settings.items():
            if name not in FREE and value != getattr(args, name):
                advice = "leave the flag out, or train anew without --resume"
                raise InputError(f"{args.resume} was trained with {name} {value}, not {getattr(args, name)}: {advice}")
    if not args.epochs and not args.minutes:
        args.epochs = 6
    if args.weight_decay is None:
        args.weight_decay = 0.2 if args.optimizer == "adamw" else 0.0
    attention_lm.set_sizes(vars(args))
    return args


def run_folder(path):
    """A run's folder, also when the file in it is given: the argument of --resume."""
    return os.path.dirname(path) or "." if os.path.basename(path) == "checkpoint.pt" else path


def main(argv=None, corpus=None):
    """Train, test and write a sample.

    argv: a list of words as in a shell, sys.argv if None.
    corpus: a Corpus to use instead of --data, see `data.corpus_of`.
    Returns a dict with valid_ppl, test_ppl (None without a test text) and checkpoint, the path; None in all processes
    of torchrun but the first.  Raises InputError for what the user can correct.
    """
    args, saved = parse_arguments(argv), None
    if corpus is not None and data.corpus_settings(vars(args)) != data.corpus_settings(vars(parse_arguments([]))):
        raise InputError("the corpus is given: leave --data, --level, --min-count, --vocab-size and --split out")
    if args.resume and not os.path.isdir(args.resume):
        raise InputError(f"there is no folder {args.resume} to resume: leave --resume out to begin a run")
    if args.resume and os.path.exists(f"{args.resume}/checkpoint.pt"):
        saved = sample.read_checkpoint(f"{args.resume}/checkpoint.pt")
        args = parse_arguments(argv, saved["settings"])
    rank, processes = join_processes()
    device = sample.device_of(args.device)
    if corpus is not None:
        args.data, args.level = None, corpus.vocabulary.tokeniser  # no command can read this text again
    elif args.data is None:
        raise InputError(f"{args.resume} was trained on a corpus from Python: give its text with --data")
    else:
        show(f"reading {args.data}")
        corpus = data.load_corpus(**data.corpus_settings(vars(args)))
    show(data.sizes(corpus))
    run = Run(args, corpus, device, rank, processes)
    if saved:
        restore(run, saved)
        show(f"going on from step {run.counters.step}")
    out = args.resume and pathlib.Path(args.resume)
    if not out and rank == 0:
        out = new_folder(args)  # not earlier: from here on nothing is wrong with the flags
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    show(f"{args.model}: {parameters:,} parameters on {device}, {args.dtype} products, writing to {out}")
    if saved and run.progress() == 1:
        show("this run has ended: give more --epochs or --minutes, or a lower --target-ppl, to go on")
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads or threads)
    try:
        train(run, out)
        return test(run, out) if rank == 0 else None
    except KeyboardInterrupt:
        show("\ninterrupted; at most the last minute is lost")
        show(f"go on with: python train.py --resume {shlex.quote(str(out))}")
        raise
    finally:
        torch.set_num_threads(threads)
        if processes > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    data.run_script(main)

"""The processes that scripts/bench.py compares, one contender each: `python scripts/bench_contenders.py SETTINGS`.

SETTINGS is JSON, see `main`. A process says on its standard output that it is ready, then answers requests from
its standard input, a line of JSON each, `["train"]` or `["score", 64]`, with one number; between two requests it
does nothing. With `once` it does one thing from its start to its end instead. Only what a contender needs is
imported, so that this file also runs where this project is not installed.
"""

import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import torch
from torch import Tensor, nn

BATCH, SIZE, NZ = 64, 32, 100
Measures = dict[str, Callable[..., float]]


class Bench:
    """What all contenders share: images, clocks and the line to whoever started this process."""

    def __init__(self, settings: SimpleNamespace, channel: TextIO) -> None:
        self.settings = settings
        self.channel = channel
        self.device = torch.device(settings.device)
        self.warm: set[str] = set()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        torch.manual_seed(0)

    def images(self, count: int) -> Tensor:
        """`uint8` `[count, 1, SIZE, SIZE]` of noise on the device: what they show does not change the speed."""
        generator = torch.Generator().manual_seed(0)
        shape = (count, 1, SIZE, SIZE)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(self.device)

    def seconds(self, what: str, function: Callable[[], Any]) -> float:
        """How long `function` takes; of each thing asked for, the first time is for warming up."""
        if what not in self.warm:
            self.warm.add(what)
            function()
        self.wait()
        started = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Until an accelerator has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def say(self, **facts: Any) -> None:
        """A line for whoever started this process."""
        self.channel.write(json.dumps(facts) + "\n")
        self.channel.flush()

    def ready(self, **facts: Any) -> None:
        """Say so, with what is worth knowing of this process."""
        self.say(threads=torch.get_num_threads(), torch=torch.__version__, **facts)

    def requests(self) -> Iterator[list[Any]]:
        """What is asked, until nobody can ask any more."""
        for line in sys.stdin:
            yield json.loads(line)

    def serve(self, measures: Measures) -> None:
        """Get ready by training once, then answer."""
        measures["train"]()
        self.ready()
        for what, *arguments in self.requests():
            self.say(value=measures[what](*arguments))

    def go_on_after_first(self, step: Callable[[], Any]) -> None:
        """One step, a word about it, and some more, so that memory has reached its peak."""
        step()
        self.wait()
        self.ready()
        for _ in range(self.settings.steps):
            step()
        self.say_device_memory()

    def say_device_memory(self) -> None:
        """The most memory that tensors had on an accelerator, in MiB."""
        if self.device.type == "cuda":
            self.say(device_mib=torch.cuda.max_memory_allocated(self.device) / 2**20)


def gflop(function: Callable[[], Any], images: int) -> float:
    """Floating-point operations an image in 10^9, two for each multiplication with addition."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import, and not part of anyone's start-up

    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / images / 1e9


# ------------------------------------------------------------------------------ this project


class Ours:
    """GANomaly by this project's trainer. Requests are answered where a run evaluates its epochs, between two."""

    def __init__(self, bench: Bench) -> None:
        from anomaly_bench.detectors.ganomaly import GANomaly
        from anomaly_bench.training.trainer import Trainer

        settings, width = bench.settings, bench.settings.width
        self.bench = bench
        self.trainer = Trainer(device=settings.device, eval_every=1, **settings.levers)
        self.detector = self.trainer.place(
            GANomaly((1, SIZE, SIZE), nz=NZ, ngf=width, ndf=width, batch_size=BATCH, epochs=10**6)
        )
        self.count = BATCH if settings.once else settings.steps * BATCH
        self.measures: Measures = {"score": self.score, "flops": self.flops, "files": self.files}
        self.requests = bench.requests()
        self.started: float | None = None

    def learn(self) -> None:
        """Train until nobody asks any more, or a few steps if that is all that is wanted."""
        once = self.bench.settings.once
        if once:
            self.trainer.max_epochs = self.bench.settings.steps
        evaluate = self.after_step if once else self.between_epochs
        self.trainer.learn(self.detector, self.rows(self.count), seed=0, evaluate=evaluate)
        self.bench.say_device_memory()

    def rows(self, count: int) -> Any:
        """Images as the trainer wants them."""
        return self.trainer.rows(self.bench.images(count), 0.5, 0.5)

    def between_epochs(self) -> float:
        """Say how fast the epoch was that was asked for, then answer until another one is."""
        if self.started is None:
            self.bench.ready(precision=self.trainer.precision)
        else:
            self.bench.say(value=self.count / (time.perf_counter() - self.started))
        for what, *arguments in self.requests:
            if what == "train":
                self.started = time.perf_counter()
                return 0.0
            self.bench.say(value=self.measures[what](*arguments))
        sys.exit()

    def after_step(self) -> float:
        """After the first one, say so."""
        if self.started is None:
            self.started = time.perf_counter()
            self.bench.ready()
        return 0.0

    def score(self, batch: int) -> float:
        """Images/s of scoring images in memory."""
        from anomaly_bench.training.scoring import score_rows

        count = self.bench.settings.scored[str(batch)]
        trainer = self.trainer
        settings = {"precision": trainer.precision, "batch_size": batch, "fold": trainer.fold}
        call = partial(score_rows, self.detector, self.rows(count), **settings)
        return count / self.bench.seconds(f"score {batch}", call)

    def flops(self, what: str) -> float:
        """GFLOP an image of `score`, or of one step of a copy."""
        rows = self.rows(BATCH)
        batch = next(rows.in_order(BATCH))
        if what == "score":
            return gflop(partial(self.detector.score, batch.x), BATCH)
        stage = next(iter(copy.deepcopy(self.detector).stages(rows)))
        return gflop(partial(stage.step, batch), BATCH)

    def files(self, run: str, folder: str) -> float:
        """Images/s of scoring image files with a finished run, its loading included."""
        from anomaly_bench.score import score_files

        call = partial(score_files, Path(run), [Path(folder)], self.bench.settings.device)
        return len(call().table) / self.bench.seconds("files", call)


# ------------------------------------------------------------------------------ the official code's passes


def plain(bench: Bench) -> None:
    """The passes of samet-akcay/ganomaly in its order, by the plainest PyTorch, on the same networks.

    Generator and discriminator run forward once each over the batch and its reconstruction, then the discriminator
    runs over both again for the generator's loss, whose gradients reach its weights too, and the loss is read
    after every step.
    """
    from anomaly_bench.networks.dcgan import Decoder, Discriminator, Encoder, dcgan_init

    width = bench.settings.width
    encode, decode, reencode = (part(SIZE, 1, NZ, width) for part in (Encoder, Decoder, Encoder))
    generator = nn.ModuleList([encode, decode, reencode]).apply(dcgan_init).to(bench.device)
    discriminate = Discriminator(SIZE, 1, width).apply(dcgan_init).to(bench.device)
    g, d = (
        torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999)) for part in (generator, discriminate)
    )
    bce, l1, l2 = nn.BCELoss(), nn.L1Loss(), nn.MSELoss()
    real_label, fake_label = (torch.full((BATCH,), x, device=bench.device) for x in (1.0, 0.0))

    def step(x: Tensor) -> None:
        z = encode(x)
        fake = decode(z)
        z_hat = reencode(fake)
        real_logits = discriminate(x)[1]
        fake_logits = discriminate(fake.detach())[1]
        g.zero_grad()
        adversarial = l2(discriminate(x)[0], discriminate(fake)[0])
        (adversarial + 50 * l1(fake, x) + l2(z_hat, z)).backward(retain_graph=True)
        g.step()
        d.zero_grad()
        loss = (bce(real_logits.sigmoid(), real_label) + bce(fake_logits.sigmoid(), fake_label)) / 2
        loss.backward()
        d.step()
        if loss.item() < 1e-5:
            discriminate.apply(dcgan_init)

    def score(x: Tensor) -> Tensor:
        z = encode(x)
        return (z - reencode(decode(z))).square().mean((1, 2, 3))

    serve_module(bench, nn.ModuleList([generator, discriminate]), step, score)


def serve_module(
    bench: Bench, module: nn.Module, step: Callable[[Tensor], None], score: Callable[[Tensor], Tensor], **more
) -> None:
    """Answer for a hand-written step and score over images in memory, in random order and in order."""
    settings = bench.settings
    if settings.once:
        x = scaled(bench.images(BATCH))
        bench.go_on_after_first(lambda: step(x))
        return
    images = bench.images(settings.steps * BATCH)

    def epoch() -> None:
        module.train()
        for index in torch.randperm(len(images)).to(bench.device).split(BATCH):
            step(scaled(images[index]))

    @torch.no_grad()
    def score_all(images: Tensor, batch: int) -> Tensor:
        module.eval()
        return torch.cat([score(scaled(part)) for part in images.split(batch)]).cpu()

    def score_rate(batch: int) -> float:
        images = bench.images(settings.scored[str(batch)])
        return len(images) / bench.seconds(f"score {batch}", lambda: score_all(images, batch))

    def flops(what: str) -> float:
        images = bench.images(BATCH)
        if what == "score":
            return gflop(partial(score_all, images, BATCH), BATCH)
        module.train()
        return gflop(partial(step, scaled(images)), BATCH)

    def train() -> float:
        return len(images) / bench.seconds("train", epoch)

    bench.serve({"train": train, "score": score_rate, "flops": flops, **more})


def scaled(images: Tensor) -> Tensor:
    """Pixels as float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


# ------------------------------------------------------------------------------ the machine


def rates(bench: Bench) -> None:
    """What the machine sustains in GFLOP/s: `["train"]` is a stand-in, `["mm", dtype]`, `["conv", dtype]`."""
    layers = [(1, 64, 32, 2, 1), (64, 128, 16, 2, 1), (128, 256, 8, 2, 1), (256, NZ, 4, 1, 0)]
    times = 200 if bench.device.type == "cuda" else 1
    size = 2048 * bench.settings.width // 64

    def mm(dtype: str) -> float:
        a, b = torch.randn(2, size, size, device=bench.device, dtype=getattr(torch, dtype))
        return rate(f"mm {dtype}", [(2 * size**3, partial(torch.mm, a, b))])

    def conv(dtype: str) -> float:
        return rate(f"conv {dtype}", [convolution(*layer, getattr(torch, dtype)) for layer in layers])

    def rate(what: str, work: list[tuple[float, Callable[[], Any]]]) -> float:
        seconds = bench.seconds(what, lambda: [run() for _ in range(times) for _, run in work])
        return times * sum(flops for flops, _ in work) / seconds / 1e9

    def convolution(
        inputs: int, outputs: int, side: int, stride: int, padding: int, dtype: torch.dtype
    ) -> tuple[float, Callable[[], Any]]:
        """FLOPs of a layer's forward pass and both gradients at the batch size, and what does them."""
        on = {"device": bench.device, "dtype": dtype}
        x = torch.randn(BATCH, inputs, side, side, **on).contiguous(memory_format=torch.channels_last)
        w = torch.randn(outputs, inputs, 4, 4, **on).contiguous(memory_format=torch.channels_last)
        how = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)

        def run() -> None:
            y = torch.ops.aten.convolution(x, w, None, *how)
            torch.ops.aten.convolution_backward(y, x, w, None, *how, [True, True, False])

        out = (side + 2 * padding - 4) // stride + 1
        return 3 * 2 * BATCH * w.numel() * out**2, run

    bench.serve({"train": lambda: 0.0, "mm": mm, "conv": conv})


# ------------------------------------------------------------------------------ anomalib


def anomalib(bench: Bench) -> None:
    """anomalib's GANomaly: its torch model and losses driven in the order of its own training step, or its Engine."""
    match bench.settings.once:
        case "engine" | "fit":
            anomalib_fit(bench)
            return
        case "predict":
            bench.say(value=anomalib_predictor(bench, writer=False)(bench.settings.files))
            return
    from anomalib.models.image.ganomaly.loss import DiscriminatorLoss, GeneratorLoss  # pyright: ignore[reportMissingImports]
    from anomalib.models.image.ganomaly.torch_model import GanomalyModel  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    width = bench.settings.width
    model = GanomalyModel((SIZE, SIZE), num_input_channels=1, n_features=width, latent_vec_size=NZ).to(
        bench.device
    )
    d, g = (
        torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for part in (model.discriminator, model.generator)
    )
    generator_loss, discriminator_loss = GeneratorLoss(), DiscriminatorLoss()

    def step(x: Tensor) -> None:
        padded, fake, latent_i, latent_o = model(x)
        pred_real, _ = model.discriminator(padded)
        pred_fake, _ = model.discriminator(fake)
        g_loss = generator_loss(latent_i, latent_o, padded, fake, pred_real, pred_fake)
        g.zero_grad()
        g_loss.backward(retain_graph=True)
        g.step()
        pred_fake, _ = model.discriminator(fake.detach())
        d_loss = discriminator_loss(pred_real, pred_fake)
        d.zero_grad()
        d_loss.backward()
        d.step()
        g_loss.item()  # as its logging does
        d_loss.item()

    predictors: dict[bool, Callable[[str], float]] = {}

    def files(folder: str, writer: bool) -> float:
        if writer not in predictors:
            predictors[writer] = anomalib_predictor(bench, writer)
            predictors[writer](folder)
        return predictors[writer](folder)

    serve_module(bench, model, step, lambda x: model(x).pred_score, files=files)


def anomalib_engine(bench: Bench, visualizer: bool, **options: Any) -> tuple[Any, Any]:
    """Its Engine and its Lightning model for the same images; its pictures only where they are asked for."""
    from anomalib.engine import Engine  # pyright: ignore[reportMissingImports]
    from anomalib.models import Ganomaly  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    on = {"cuda": "gpu"}.get(bench.device.type, bench.device.type)
    options = {"accelerator": on, "devices": 1, "enable_progress_bar": False, **options}
    engine = Engine(default_root_dir=bench.settings.out, **options)
    prepare = Ganomaly.configure_pre_processor((SIZE, SIZE))
    width = bench.settings.width
    model = Ganomaly(batch_size=BATCH, n_features=width, pre_processor=prepare, visualizer=visualizer)
    return engine, model


def anomalib_fit(bench: Bench) -> None:
    """Train and test on image files from its start to its end; `engine` stops after the first training step."""
    from anomalib.data import Folder  # pyright: ignore[reportMissingImports]
    from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]

    class FirstStep(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step <= 2:  # both optimisers are counted
                bench.ready()

    settings = bench.settings
    folders = {
        "normal_dir": "train/0.normal",
        "normal_test_dir": "test/0.normal",
        "abnormal_dir": "test/1.abnormal",
    }
    workers = 0 if (os.cpu_count() or 1) <= 2 else 8  # its default where workers pay
    batches = {"train_batch_size": BATCH, "eval_batch_size": BATCH, "num_workers": workers}
    data = Folder(name="bench", root=settings.files, seed=0, **folders, **batches)
    limit = {"max_steps": 2} if settings.once == "engine" else {"max_epochs": settings.epochs}
    engine, model = anomalib_engine(bench, visualizer=False, callbacks=[FirstStep()], **limit)
    started = time.perf_counter()
    engine.fit(model, datamodule=data)
    seconds = time.perf_counter() - started
    if settings.once == "fit":
        engine.test(model, datamodule=data)
    bench.say(value=len(data.train_data) * settings.epochs / seconds)


def anomalib_predictor(bench: Bench, writer: bool) -> Callable[[str], float]:
    """Images/s of its Engine over a folder of image files, with or without writing a picture of each."""
    from anomalib.data import PredictDataset  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader

    engine, model = anomalib_engine(bench, visualizer=writer)

    def predict(folder: str) -> float:
        started = time.perf_counter()
        data = PredictDataset(folder, image_size=(SIZE, SIZE))
        loader = DataLoader(data, batch_size=BATCH, collate_fn=data.collate_fn)
        found = engine.predict(model, dataloaders=loader)
        assert sum(len(batch.pred_score) for batch in found) == len(data)
        return len(data) / (time.perf_counter() - started)

    return predict


def main() -> None:
    """Be the contender that the settings name.

    They are `contender`, `device`, `threads` (null: all), `levers` (arguments of `Trainer`), `width` (ngf and ndf),
    `steps` (of one epoch in memory), `scored` (images scored in one go, by batch size), `epochs`, `files` and
    `out` (passes over a folder of image files, that folder, and one to write to), and `once`.
    """
    settings = SimpleNamespace(**json.loads(sys.argv[1]))
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes elsewhere
    contenders = {
        "ours": lambda bench: Ours(bench).learn(),
        "plain": plain,
        "rates": rates,
        "anomalib": anomalib,
    }
    contenders[settings.contender](Bench(settings, channel))


if __name__ == "__main__":
    main()

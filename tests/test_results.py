"""Every figure in results/ follows from the records beside it."""

import contextlib
import re
import runpy
import shutil
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import wilcoxon

from anomaly_bench.detectors import dagmm, geotrans
from anomaly_bench.record import read_json, read_records

RESULTS = Path(__file__).parent.parent / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/records"))
FINDINGS = RESULTS.parent / "docs" / "findings.md"
PUBLISH = runpy.run_path(str(RESULTS.parent / "scripts/publish.py"))


def files_in(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def again(tmp_path_factory) -> Path:
    """results/ made again by the script, from the records and from what stands above the index."""
    place = tmp_path_factory.mktemp("again")
    for folder in FOLDERS:
        shutil.copytree(folder / "records", place / "results" / folder.name / "records")
    words = (RESULTS / "README.md").read_text(encoding="utf-8").partition(PUBLISH["INDEX"])[0]
    (place / "results" / "README.md").write_text(words, encoding="utf-8")
    with contextlib.chdir(place):
        for folder in FOLDERS:
            PUBLISH["publish"](Path("results", folder.name))
        PUBLISH["write_index"](Path("results"))
    return place / "results"


def test_every_file_is_what_the_records_give(again):
    others = ("benchmarks/", "cost.md")  # of scripts of their own
    kept = {name: path for name, path in files_in(RESULTS).items() if not name.startswith(others)}
    made = files_in(again)
    assert set(kept) == set(made)
    assert len(FOLDERS) >= 2
    for name in sorted(kept):
        if not name.endswith(".png"):  # of which table.csv has the numbers
            assert made[name].read_bytes() == kept[name].read_bytes(), name


def test_the_index_has_every_result(again):
    index = (again / "README.md").read_text(encoding="utf-8").partition(PUBLISH["INDEX"])[2]
    rows = [line for line in index.splitlines() if line.startswith("| [")]
    names = [row.split("]")[0].removeprefix("| [") for row in rows]  # one for each of its papers' tables
    assert list(dict.fromkeys(names)) == [folder.name for folder in FOLDERS]
    for row in rows:
        for part in ("`anomaly-bench -m ", "torch 2.", "cores"):
            assert part in row
        if "no paper's number to compare with" not in row and "none of its numbers was run" not in row:
            assert "on average" in row
            assert re.search(r"reached \(seeds: [\d–]+; epochs: ", row)


def test_the_index_is_written_below_what_people_wrote(tmp_path):
    (tmp_path / "README.md").write_text("# Words\n" + PUBLISH["INDEX"] + "old numbers\n", encoding="utf-8")
    shutil.copytree(FOLDERS[0] / "records", tmp_path / "one" / "records")
    PUBLISH["write_index"](tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Words\n" + PUBLISH["INDEX"])
    assert "old numbers" not in text
    assert "[one](one/README.md)" in text


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_record_says_how_it_was_made(folder):
    records = read_records(folder / "records")
    assert records
    for record in records:
        assert record.status == "finished"
        for name in (
            "overrides",
            "versions",
            "device",
            "data_fingerprint",
            "data_source",
            "seed",
            "epochs_done",
        ):
            assert record.run[name] is not None


def test_the_readme_shows_tables_that_the_records_give():
    table = (RESULTS / "ganomaly_mnist" / "table.md").read_text(encoding="utf-8").splitlines()
    readme = (RESULTS.parent / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in table if line.startswith("|")]
    assert len(rows) == 6 + 13
    assert [line for line in rows if line not in readme] == []


def short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


@pytest.mark.parametrize(
    ("start", "folder", "method", "variant"),
    [
        ("[GANomaly on MNIST](", "ganomaly_mnist_full_length", "GANomaly", ""),
        ("[Deep SVDD on MNIST](", "deep_svdd_mnist", "one-class Deep SVDD", ""),
        ("[MemAE on MNIST](", "memae_mnist_all_rows", "MemAE", "trainer.max_epochs=20"),
        ("the same without its memory |", "memae_mnist_all_rows", "AE", "trainer.max_epochs=20"),
        ("[Deep SVDD on CIFAR-10](", "deep_svdd_cifar10_jpeg", "one-class Deep SVDD", "data.limit=2500"),
        ("[GeoTrans on", "geotrans_cifar10_jpeg", "GeoTrans", "data.limit=5000, model.widen_factor=2"),
        (
            "[the same, cats alone, all 5,000, lossless](",
            "geotrans_cifar10_lossless",
            "GeoTrans",
            "model.score_by=dirichlet, model.widen_factor=2",
        ),
        ("[DAGMM on arrhythmia](", "dagmm_arrhythmia", "DAGMM", ""),
        ("[DAGMM on thyroid](", "dagmm_thyroid", "DAGMM", ""),
        ("the same, the mixture after the autoencoder (PAE-GMM) |", "dagmm_thyroid", "PAE-GMM", ""),
        ("[DAGMM on KDD Cup 1999](", "dagmm_kddcup99", "DAGMM", ""),
        ("[DAGMM on KDD Cup 1999, reversed](", "dagmm_kddcup99_rev", "DAGMM", ""),
        ("the same, an autoencoder alone (PAE) |", "dagmm_kddcup99_rev", "PAE", ""),
    ],
)
def test_the_readme_s_summary_is_what_the_records_give(start, folder, method, variant):
    frame = pd.read_csv(RESULTS / folder / "paper.csv").dropna(subset="mean")
    wanted = frame["variant"] == variant if variant else frame["variant"].isna()
    frame = frame[(frame["method"] == method) & wanted]
    whole = (frame["class"] == "mean") | (frame["metric"] == "f1")
    (own,) = frame[whole | (len(frame) == 1)].itertuples()
    readme = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in readme.splitlines() if line.startswith(f"| {start}")]
    assert "](" not in line or f"](results/{folder})" in line
    assert line.endswith(f" | {short(own.printed)} | {short(own.mean)} | {short(own.untrained_mean)} |")


def test_the_findings_have_the_gans_as_the_records_give_them():
    frame = pd.read_csv(RESULTS / "gans_mnist" / "table.csv", dtype={"class": str})
    lines = []
    for model, own in frame[frame["class"] != "mean"].groupby("model"):
        cells = [*own.sort_values("class")["mean"], own["mean"].mean(), own["untrained_mean"].mean()]
        lines.append((own["mean"].mean(), f"| {model} | {' | '.join(map(short, cells))} |"))
    assert len(lines) == 14
    wanted = "\n".join(
        ["|:---|---:|---:|---:|---:|---:|", *(line for _, line in sorted(lines, reverse=True)), ""]
    )
    assert wanted in FINDINGS.read_text(encoding="utf-8")


def test_the_findings_have_memae_as_the_records_give_it():
    whole, part = (
        pd.read_csv(RESULTS / name / "table.csv", dtype={"class": str}).set_index(["model", "class"])
        for name in ("memae_mnist_all_rows", "memae_mnist")
    )
    papers = pd.read_csv(RESULTS / "memae_mnist_all_rows" / "paper.csv").set_index("method")["printed"]
    columns = [*map(str, range(10)), "mean"]
    for said, model, method, column in (
        ("without the memory", "memae_ae", "AE", "mean"),
        ("a memory, nothing sparse (nonSpar)", "memae_nonspar", "MemAE-nonSpar", "mean"),
        ("MemAE", "memae", "MemAE", "mean"),
        ("untrained", "memae", None, "untrained_mean"),
    ):
        cells = [short(whole.loc[(model, name), column]) for name in columns]
        paper = short(papers[method]) if method else "–"
        last = short(part.loc[(model, "mean"), column])
        line = f"| {said} | {' | '.join(cells)} | {paper} | {last} |"
        assert line in FINDINGS.read_text(encoding="utf-8")


def of_classes(folder: str, metric: str = "auroc") -> dict[str, pd.DataFrame]:
    """Numbers beside a paper's, by variant (empty for none) and then by class, without means."""
    frame = pd.read_csv(RESULTS / folder / "paper.csv", dtype={"class": str}).dropna(subset="mean")
    frame = frame[(frame["metric"] == metric) & (frame["class"] != "mean")]
    variants = frame["variant"].astype(object).where(frame["variant"].notna(), "")
    return {variant: own.set_index("class") for variant, own in frame.groupby(variants)}


def test_the_findings_have_ganomaly_at_full_length_as_the_records_give_it():
    short_runs, long_runs = (
        of_classes("ganomaly_mnist")["trainer.max_epochs=1"],
        of_classes("ganomaly_mnist_full_length"),
    )
    plain, batch = long_runs[""], long_runs["evaluation.batch_norm=batch, evaluation.batch_size=64"]
    digits = sorted(plain.index)
    assert sorted(batch.index) == digits
    rows = {
        "digit": digits,
        "untrained": map(short, plain["untrained_mean"]),
        "one epoch": map(short, short_runs.loc[plain.index, "mean"]),
        "fifteen epochs": map(short, plain["mean"]),
        "fifteen, batch norm by test batches of 64": map(short, batch["mean"]),
        "untrained, batch norm by test batches": map(short, batch["untrained_mean"]),
        "the paper's Figure 4a": map(short, plain["printed"]),
    }
    for name, cells in rows.items():
        assert f"| {name} | {' | '.join(cells)} |" in FINDINGS.read_text(encoding="utf-8").splitlines()


def test_the_findings_have_egbad_and_alad_as_the_records_give_them():
    text = FINDINGS.read_text(encoding="utf-8")
    own = of_classes("egbad_mnist", "aupr_out")
    whole = own["model.dropout=0, model.first_activation=False, trainer.max_epochs=60"].loc["2", "mean"]
    said = "all 50,400 images, 60 epochs, the code's learning rate and width, with the slips"
    assert f"| {said} | {short(whole)} | | |" in text
    shorter = [frame.loc["2", "mean"] for frame in own.values() if "2" in frame.index]
    assert max(shorter) == whole
    length = "model.ema_decay=0.99, model.width=32, trainer.max_epochs=12"
    jpeg, lossless = of_classes("alad_cifar10_jpeg"), of_classes("alad_cifar10_lossless")
    slip, slip_lossless = (runs[f"model.concat=height, {length}"]["mean"] for runs in (jpeg, lossless))
    plain = lossless[length]["mean"]
    words = " ".join(text.split())
    assert f"With it cats have {short(slip['cat'])} after 12 epochs" in words
    assert f"they have {short(slip_lossless['cat'])} with it and {short(plain['cat'])} without" in words
    ships = map(short, (slip["ship"], slip_lossless["ship"], plain["ship"]))
    assert "Ships lose by it: {}, and lossless {} for {}".format(*ships) in words


def test_the_findings_have_deep_svdd_as_the_records_give_it():
    own = of_classes("deep_svdd_mnist")[""]
    lines = FINDINGS.read_text(encoding="utf-8").splitlines()
    for name, column in (("paper", "printed"), ("ours", "mean"), ("untrained", "untrained_mean")):
        assert f"| {name} | {' | '.join(map(short, [*own[column], own[column].mean()]))} |" in lines


@pytest.mark.parametrize(
    ("start", "folder", "model", "settings"),
    [
        ("nearest neighbours", "pretrained_cifar10_jpeg", "pretrained", ""),
        ("GeoTrans", "geotrans_cifar10_jpeg", "geotrans", "data.limit=5000, model.widen_factor=2"),
        ("E3Outlier", "e3outlier_cifar10_jpeg", "e3outlier", "data.limit=2500"),
        ("Deep SVDD", "deep_svdd_cifar10_jpeg", "deep_svdd", "data.limit=2500"),
        ("DAGMM on images", "dsebm_dagmm_cifar10_jpeg", "dagmm_conv", ""),
        ("DSEBM ([", "dsebm_dagmm_cifar10_jpeg", "dsebm", "default"),
        ("DSEBM, lossless", "geotrans_cifar10_lossless", "dsebm", "data.limit=5000"),
        ("OC-SVM on pixels, chosen by no label", "ocsvm_cifar10_jpeg", "ocsvm", ""),
        ("SimCLR", "simclr_cifar10_jpeg", "simclr", ""),
    ],
)
def test_the_findings_have_one_class_cifar10_as_the_records_give_it(start, folder, model, settings):
    frame = pd.read_csv(RESULTS / folder / "table.csv")
    frame = frame[(frame["model"] == model) & frame["class"].isin(["automobile", "cat", "ship"])]
    if settings:
        frame = frame[frame["settings"] == settings]
    own = frame.sort_values("class")
    assert len(own) == 3
    (line,) = [
        one for one in FINDINGS.read_text(encoding="utf-8").splitlines() if one.startswith(f"| {start}")
    ]
    ours, untrained = (" ".join(map(short, own[column])) for column in ("mean", "untrained_mean"))
    cells = [cell.strip() for cell in line.split("|")]
    assert (cells[2], cells[4]) == (ours, untrained)


@pytest.mark.parametrize("sets", [("arrhythmia", "thyroid"), ("kddcup99", "kddcup99_rev")], ids="-".join)
def test_the_findings_have_the_table_of_dagmm_as_the_records_give_it(sets):
    tables = []
    for name in sets:
        frame = pd.read_csv(RESULTS / f"dagmm_{name}" / "paper.csv")
        shown = frame[(frame["data"] == name) & (frame["metric"] == "f1") & frame["variant"].isna()]
        assert len(shown) == 12
        tables.append(
            {
                row.method: f" {row.printed:.3f} | {row.mean:.3f} ± {row.std:.3f} | {row.untrained_mean:.3f} |"
                for row in shown.itertuples()
            }
        )
    lines = [f"| {method} |" + "".join(table[method] for table in tables) for method in tables[0]]
    wanted = "\n".join(["|:---|" + "---:|---:|---:|" * len(sets), *lines, ""])
    assert wanted in FINDINGS.read_text(encoding="utf-8")


def of_dagmm_s_table(data: str, model: str) -> list[Path]:
    """The records of a method's runs that are scaled by training rows."""
    runs = (RESULTS / f"dagmm_{data}" / "records").glob(f"*-tabular_half-{model}-normal-*")
    return [run for run in runs if "scaling: train" in (run / "config.yaml").read_text()]


def of_seeds(data: str, model: str, number: str) -> pd.Series:
    """A number of those runs, by seed."""
    told = [
        read_json(run / "metrics.json") | read_json(run / "run.json") for run in of_dagmm_s_table(data, model)
    ]
    return pd.Series({one["seed"]: one[number] for one in told})


EACH = "in 20 of 20 seeds, E2E-AE and DSEBM-r in 19 of 20 (p below .001)"


@pytest.mark.parametrize(
    ("data", "model", "other", "number", "said"),
    [
        ("arrhythmia", "pae", "dagmm", "f1", "p .30;"),
        ("arrhythmia", "pae", "dagmm", "auroc", "by AUROC they do, .807 against .769, p below .001"),
        ("arrhythmia", "dagmm", "", "f1", "not told from its own control (p .65)"),
        ("thyroid", "dagmm", "", "f1", "its control there either (p .22)"),
        ("thyroid", "pae_gmm", "dagmm", "f1", "in 19 of 20 seeds (p below .001)"),
        ("thyroid", "pae_gmm_em", "dagmm", "f1", "in 19 of 20 seeds (p below .001)"),
        ("thyroid", "gmm_en", "dagmm", "f1", "not behind DAGMM (p .53)"),
        ("thyroid", "pae", "dagmm", "f1", "the plain autoencoder (p .63)"),
        ("kddcup99", "dagmm", "", "f1", "its untrained control (p .62)"),
        (
            "kddcup99",
            "ocsvm",
            "dagmm",
            "f1",
            "in 19 of 20 seeds (p below .001), though not by AUROC, .978 for .988",
        ),
        ("kddcup99_rev", "dagmm", "", "f1", "leaves its control behind (p below .001)"),
        ("kddcup99_rev", "pae", "dagmm", "f1", EACH),
        ("kddcup99_rev", "dsebm", "dagmm", "f1", EACH),
        ("kddcup99_rev", "e2e_ae", "dagmm", "f1", "in 19 of 20 (p below .001)"),
        ("kddcup99_rev", "dsebm_r", "dagmm", "f1", "in 19 of 20 (p below .001)"),
        ("kddcup99_rev", "gmm_en", "dagmm", "f1", "in 16 of 20 (p .03, which does not stand a correction)"),
        ("kddcup99_rev", "pae_gmm_em", "dagmm", "f1", "(PAE-GMM-EM p .11, the others more)"),
        ("kddcup99_rev", "dagmm_p", "", "f1", "from its own control (p .04)"),
        ("kddcup99_rev", "dcn", "", "f1", "its own control has .576 (p .02)"),
    ],
)
def test_the_findings_have_the_signed_ranks_that_the_records_give(data, model, other, number, said):
    text = " ".join(FINDINGS.read_text(encoding="utf-8").split())
    begin = text.index(f"On **{data}** ([records](../results/dagmm_{data}))")
    assert said in text[begin : text.index(" - ", begin)]
    ours = of_seeds(data, model, number)
    theirs = of_seeds(data, other or model, number if other else f"{number}_untrained")
    pairs = pd.concat([ours, theirs], axis=1, join="inner")
    p = wilcoxon(*pairs.to_numpy().T).pvalue
    assert (f"p {p:.2f}".replace("0.", ".") if p >= 0.001 else "p below .001") in said
    if counted := re.search(r"in (\d+) of (\d+)", said):
        assert ((pairs[0] > pairs[1]).sum(), len(pairs)) == tuple(map(int, counted.groups()))


def test_dagmm_s_docstring_has_the_reconstructions_that_the_records_give():
    def last(name: str, loss: str) -> list[float]:
        """Mean over the runs scaled by training rows, on each of three tables, of the last value of a loss."""
        means = []
        for data in ("kddcup99", "thyroid", "arrhythmia"):
            scaled = of_dagmm_s_table(data, name)
            means.append(sum(pd.read_csv(run / "losses.csv")[loss].iloc[-1] for run in scaled) / len(scaled))
        return means

    words = " ".join((dagmm.__doc__ or "").split())
    first, second, third = map(short, last("dagmm", "reconstruction"))
    assert f" is {first} there, {second} on thyroid, {third} on arrhythmia (" in words
    for name in ("dagmm_p", "pae"):
        assert f"{name} {', '.join(map(short, last(name, 'reconstruction')))}" in words
    weighted = [0.005 * value for value in last("pae_gmm", "penalty")]
    assert f"`penalty` is {', '.join(f'{value:.0f}' for value in weighted)} (pae_gmm)" in words


def test_geotrans_docstring_has_the_cats_that_the_records_give():
    docstring = " ".join((geotrans.__doc__ or "").split())
    both = {}
    for name in ("jpeg", "lossless"):
        frame = pd.read_csv(RESULTS / f"geotrans_cifar10_{name}" / "table.csv")
        by_default = frame["settings"].str.contains("dirichlet") & ~frame["settings"].str.contains("limit")
        (own,) = frame[by_default & (frame["class"] == "cat")]["mean"]
        both[name] = short(own)
    assert f"is {both['jpeg']} from JPEG files and {both['lossless']} from lossless ones" in docstring


def test_the_readme_s_speeds_are_the_benchmarks():
    first, second = speeds_of("zen5_epyc_2_cores"), speeds_of("amx_intel_2_cores")
    readme = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("\n## Speed\n")[2].partition("\n## ")[0]
    for what in (
        *("training, images/s", "training within that command, images/s", "scoring, batch 64, images/s"),
        *(
            "scoring, batch 1, images/s",
            "scoring image files, images/s",
            "start to the end of the first step, s",
            "peak memory of training, MiB",
        ),
    ):
        (own, ratio), (other, _) = first[what, "anomaly-bench"], first[what, "anomalib"]
        assert f" | {own} | {other} | {ratio} | {second[what, 'anomaly-bench'][1]} |\n" in shown


def speeds_of(name: str) -> dict[tuple[str, str], tuple[str, str]]:
    """By what was measured and contender: the median, and its ratio to anomalib's."""
    speeds, what = {}, ""
    for line in (RESULTS / "benchmarks" / f"{name}.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().partition(" [")[0] for cell in line.split("|")[1:-1]]
        if len(cells) == 7:
            what = cells[0] or what
            speeds[what, cells[1]] = cells[2], cells[6].removeprefix("0")
    return speeds


def test_the_index_names_one_command_and_how_many_more():
    assert PUBLISH["shortened"](["one"]) == "`one`"
    assert PUBLISH["shortened"](["one", "two", "three"]) == "`one` and 2 more"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("benchmarks/*.json")), ids=lambda path: path.stem)
def test_a_benchmark_s_table_is_what_its_samples_give(path, monkeypatch):
    monkeypatch.syspath_prepend(RESULTS.parent / "scripts")
    import bench_levers
    import bench_rows
    import bench_table

    told = read_json(path)
    match told:
        case {"aurocs": _}:
            page = bench_levers.page(told)
        case {"lines": lines}:
            page = bench_rows.page(lines, told)
        case _:
            page = bench_table.table(told)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == page


def test_of_many_epochs_every_so_many_are_kept_and_the_last():
    thinned, most = PUBLISH["thinned"], PUBLISH["MOST_EPOCHS"]
    for epochs in (0, 1, most, most + 1, 2 * most + 1, 20 * most):
        lines = [f"{epoch}\n" for epoch in range(1, epochs + 1)]
        kept = thinned("epoch\n" + "".join(lines)).splitlines(keepends=True)
        assert kept[0] == "epoch\n"
        assert kept[1:] == sorted(set(kept[1:]), key=int)
        assert len(kept) <= most + 2
        assert kept[1:] == lines if epochs <= most else kept[-1] == lines[-1]
        steps = {int(b) - int(a) for a, b in pairwise(kept[1:-1])}
        assert len(steps) <= 1

import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from finished import digit_files, finished, people
from PIL import Image
from torch import Tensor

from anomaly_bench import score
from anomaly_bench.cli import answer
from anomaly_bench.commands import check_writable
from anomaly_bench.data.dataset import Column
from anomaly_bench.errors import SettingError
from anomaly_bench.score import Scored, percentiles, rule_of, score_files

IMAGES = {"data": "folder", "protocol": "folder", "data__image_size": "16"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("score")


@pytest.fixture(scope="module")
def bags(place: Path) -> Path:
    return digit_files(place / "bags")


@pytest.fixture(scope="module")
def image_run(place: Path, bags: Path) -> Path:
    """A small autoencoder, which has maps, on pixels that are scaled by numbers of their own."""
    small = {"model__width": "4", "model__epochs": "2", "data__mean": "0.4", "data__std": "0.3"}
    return finished(place / "runs", model="ae", **IMAGES, data__root=str(bags), **small)


@pytest.fixture(scope="module")
def mapless_run(place: Path, bags: Path) -> Path:
    return finished(place / "runs", model="ocsvm", **IMAGES, data__root=str(bags))


@pytest.fixture(scope="module")
def table_run(place: Path) -> Path:
    root = str(people(place / "people.csv"))
    return finished(
        place / "runs",
        model="ocsvm",
        data="table",
        protocol="tabular_half",
        data__root=root,
        data__label="kind",
    )


@pytest.fixture(scope="module")
def of_images(image_run: Path, bags: Path) -> Scored:
    return score_files(image_run, [bags / "test"], "cpu")


# ------------------------------------------------------------------------------ the run's numbers


def test_a_folder_of_images_scores_as_in_the_run(image_run, bags, of_images):
    kept = pd.read_csv(image_run / "scores.csv")
    again = of_images.table.set_index("file").loc[[str(bags / file) for file in kept["file"]], "score"]
    np.testing.assert_allclose(again, kept["score"], rtol=1e-6)
    assert list(of_images.table) == ["file", "score", "verdict", "percentile"]
    assert len(of_images.table) == 40
    assert of_images.threshold == json.loads((image_run / "metrics.json").read_text())["threshold"]


def test_single_images_score_as_in_their_folder(image_run, bags, of_images):
    files = [bags / "test/1.abnormal/03.png", bags / "test/0.normal/11.png"]
    alone = score_files(image_run, files, "cpu").table.set_index("file")
    among = of_images.table.set_index("file").loc[alone.index]
    np.testing.assert_allclose(alone["score"], among["score"], rtol=1e-5)
    assert alone["percentile"].tolist() == among["percentile"].tolist()


def test_tables_score_as_in_the_run_one_by_one_or_in_a_folder(table_run, place):
    kept = pd.read_csv(table_run / "scores.csv")
    folder = place / "tables"
    (folder / "deeper").mkdir(parents=True)
    shutil.copy(place / "people.csv", folder / "deeper/b.csv")
    pd.read_csv(place / "people.csv").head(5).to_parquet(folder / "a.parquet")
    (folder / "notes.txt").write_text("no table")
    table = score_files(table_run, [place / "people.csv", folder], "cpu").table
    assert list(table) == ["file", "row", "score", "verdict", "percentile"]
    assert table["file"].unique().tolist() == [
        str(place / "people.csv"), str(folder / "a.parquet"), str(folder / "deeper/b.csv")
    ]  # fmt: skip
    assert table["row"].tolist() == [*range(120), *range(5), *range(120)]
    whole = table["score"].to_numpy()
    np.testing.assert_allclose(whole[kept["row"]], kept["score"], rtol=1e-5)
    np.testing.assert_allclose(whole[:120], whole[125:], rtol=1e-6)
    np.testing.assert_allclose(whole[:5], whole[120:125], rtol=1e-5)
    with pytest.raises(SettingError, match=r"no tables there \(\.csv"):
        score_files(table_run, [place / "bags"], "cpu")


def test_scores_are_normal_up_to_the_threshold_and_percentiles_rise_with_them(of_images):
    table = of_images.table.sort_values("score")
    assert ((table["score"] > of_images.threshold) == (table["verdict"] == "anomalous")).all()
    assert table["percentile"].is_monotonic_increasing
    assert table["percentile"].between(0, 100).all()
    assert table["percentile"].nunique() > 5


def test_a_score_just_above_the_run_s_threshold_is_anomalous(mapless_run, bags, monkeypatch):
    top = score_files(mapless_run, [bags / "test"], "cpu").table["score"].max()
    monkeypatch.setattr(score, "own_threshold", lambda *_: float(np.nextafter(float(top), -np.inf)))
    assert score_files(mapless_run, [bags / "test"], "cpu").n_anomalous == 1


# ------------------------------------------------------------------------------ thresholds


def test_the_percentile_is_the_share_of_training_rows_that_score_lower():
    training = np.r_[np.zeros(96), [1.0, 2.0, 3.0, 4.0]]
    levels = np.arange(101) / 100
    quantiles = np.quantile(training, levels)
    given = percentiles(np.array([-1.0, 0.0, 1e-9, 2.0, 4.0, 5.0]), levels, quantiles)
    assert given.tolist() == pytest.approx([0, 0, 95, 97, 100, 100], abs=1.5)
    assert percentiles(np.zeros(1), np.array([0.0, 1.0]), np.zeros(2)).tolist() == [0]


def test_thresholds_by_rule(image_run, bags, of_images):
    def scored(rule: str) -> Scored:
        return score_files(image_run, [bags / "test"], "cpu", rule)

    training = score_files(image_run, [bags / "train"], "cpu").table["score"]
    scores = of_images.table["score"]
    for share in (0.5, 0.9, 0.99, 0.995):
        found = scored(f"quantile={share}")
        assert found.threshold == pytest.approx(np.quantile(training, share), rel=1e-4)
        assert found.n_anomalous == (scores > found.threshold).sum()
    highest = scored("max_train")
    assert highest.threshold == pytest.approx(training.max(), rel=1e-6)
    assert 0 < highest.n_anomalous < 40
    rare = scored("contamination=0.1")
    assert rare.n_anomalous == 4
    assert set(rare.table["file"][rare.table["verdict"] == "anomalous"]) == set(
        of_images.table.nlargest(4, "score")["file"]
    )
    assert scored("contamination=0").n_anomalous == 0
    assert scored("contamination=1").n_anomalous == 40
    assert rare.table["percentile"].tolist() == of_images.table["percentile"].tolist()


def test_runs_that_kept_whole_percents_only_are_read_too(image_run, bags, place):
    older = Path(shutil.copytree(image_run, place / "older"))
    facts = json.loads((older / "run.json").read_text())
    levels, quantiles = (np.array(facts["training_scores"].pop(name)) for name in ("levels", "quantiles"))
    facts["training_scores"]["quantiles"] = np.interp(np.linspace(0, 1, 101), levels, quantiles).tolist()
    (older / "run.json").write_text(json.dumps(facts))
    for rule in ("quantile=0.75", "max_train"):
        newer, old = (score_files(run, [bags / "test"], "cpu", rule) for run in (image_run, older))
        assert old.threshold == pytest.approx(newer.threshold, rel=1e-6)


@pytest.mark.parametrize(
    "rule", ["quantile", "quantile=", "quantile=2", "quantile=nan", "contamination=-0.1", "max_train=3", "best", ""]
)  # fmt: skip
def test_a_rule_that_cannot_be_is_refused(rule):
    with pytest.raises(
        SettingError, match=r"--threshold .*: allowed are quantile=SHARE, contamination=SHARE"
    ):
        rule_of(rule)


@pytest.mark.parametrize("rule", ["quantile", "contamination"])
@pytest.mark.parametrize("share", [0, 1])
def test_a_share_may_be_none_or_all(rule, share):
    assert rule_of(f"{rule}={share}") == (rule, share)


# ------------------------------------------------------------------------------ decoding


def source_of(files: list[Path], **data: object) -> score.Source:
    """What a run on 16 x 16 pixels has of image files."""
    trained = SimpleNamespace(values={"data": data}, run={"shape": [1, 16, 16]})
    return score.images(trained, files)  # pyright: ignore[reportArgumentType]


def blocks_of(files: list[Path], **data: object) -> list[Tensor]:
    return [x for _, x in source_of(files, **data).blocks]


def test_images_are_fitted_as_the_run_has_them(tmp_path):
    Image.new("L", (8, 16), 255).save(tmp_path / "tall.png")
    (stretched,) = blocks_of([tmp_path / "tall.png"], image_size=16)
    (padded,) = blocks_of([tmp_path / "tall.png"], image_size=16, fit="pad")
    assert stretched.min() == 255
    assert padded[..., 0].max() == 0
    as_they_are = source_of([tmp_path / "tall.png"], image_size=None, fit="pad")
    assert list(as_they_are.blocks) == []
    assert [why for _, why in as_they_are.failures] == ["8x16, not 16x16: set data.image_size"]


def test_images_of_a_loader_of_one_s_own_need_no_image_size(tmp_path):
    for width in (16, 8):
        Image.new("L", (width, 16), 9).save(tmp_path / f"{width}.png")
    source = source_of([tmp_path], path="mine.npz")
    assert [x.shape for _, x in source.blocks] == [(1, 1, 16, 16)]
    assert [why for _, why in source.failures] == ["8x16, not 16x16: set data.image_size"]


def test_an_image_larger_than_a_block_is_one(bags, monkeypatch):
    monkeypatch.setattr(score, "BLOCK", 16 * 16 - 1)
    assert [len(x) for x in blocks_of([bags / "test/0.normal"], image_size=16)] == [1] * 20


def test_files_are_decoded_block_by_block_and_let_go(image_run, bags, of_images, monkeypatch):
    monkeypatch.setattr(score, "BLOCK", 16 * 16 * 6 + 5)  # bytes of six images
    decode, alive, most, sizes = score.decode_each, [], 0, []

    def watched(paths, shape, fit):
        nonlocal most
        x, failures = decode(paths, shape, fit)
        sizes.append(len(paths))
        alive[:] = [block for block in alive if block() is not None] + [weakref.ref(x)]
        most = max(most, len(alive))
        return x, failures

    monkeypatch.setattr(score, "decode_each", watched)
    in_blocks = score_files(image_run, [bags / "test"], "cpu").table
    assert sizes == [6] * 6 + [4]
    assert most == 1
    pd.testing.assert_frame_equal(in_blocks, of_images.table, rtol=1e-5)


# ------------------------------------------------------------------------------ files that cannot be read


def test_files_that_cannot_be_read_are_told_and_the_others_scored(
    image_run, bags, place, of_images, capsys, monkeypatch
):
    monkeypatch.setattr(
        score, "BLOCK", 16 * 16 * 6
    )  # bytes of six images: the bad ones lie in several blocks
    mixed = shutil.copytree(bags / "test", place / "mixed")
    for name in ("0.normal/00.png", "0.normal/07.png", "1.abnormal/zz.png"):
        (mixed / name).write_text("no image")
    output = place / "mixed.csv"
    assert answer(["score", str(image_run), str(mixed), "--output", str(output), "--fail-on-anomaly"]) == 2
    told = capsys.readouterr()
    assert "38 files, " in told.out
    assert "3 of 41 image files cannot be read: " in told.err
    assert told.err.count("(not an image, ") == 3
    assert told.err.endswith("the others are scored\n")
    kept = of_images.table.assign(file=of_images.table["file"].str.replace("bags/test", "mixed", regex=False))
    kept = kept[~kept["file"].str.contains("0.normal/0[07]", regex=True)].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(output), kept, rtol=1e-5, check_dtype=False)


def test_where_no_file_can_be_read_nothing_is_scored(image_run, place):
    (place / "list.txt").write_text("a.png")
    with pytest.raises(
        SettingError, match=r"^1 of 1 image files cannot be read: '.*list\.txt' \(not an image"
    ):
        score_files(image_run, [place / "list.txt"], "cpu")


# ------------------------------------------------------------------------------ maps


def test_maps_lie_in_their_folder_each_under_a_name_of_its_own(image_run, bags, place, of_images):
    for number, folder in enumerate(("a", "b")):
        (place / "twice" / folder).mkdir(parents=True)
        shutil.copy(bags / f"test/{number}.{'ab' * number}normal/00.png", place / f"twice/{folder}/x.png")
    shutil.copy(bags / "test/0.normal/01.png", place / "twice/..png")
    files = [place / "twice/a/x.png", place / "twice/b/x.png", place / "twice/..png"]
    table = score_files(image_run, files, "cpu", maps=place / "maps").table
    assert sorted(path.name for path in (place / "maps").iterdir()) == sorted(table["map"])
    assert table["map"].nunique() == 3
    assert not [path for path in place.iterdir() if path.suffix == ".png"]
    np.testing.assert_allclose(table["score"], score_files(image_run, files, "cpu").table["score"], rtol=1e-5)
    by_file = dict(zip(table["file"], table["map"], strict=True))
    with Image.open(place / "maps" / by_file[str(files[0])]) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (256, 256))


def test_maps_belong_to_their_files_across_blocks(image_run, bags, place, monkeypatch):
    calls = []
    monkeypatch.setattr(score, "BLOCK", 16 * 16 * 6)
    monkeypatch.setattr(score, "BATCH", 4)
    monkeypatch.setattr(
        score.Overlays,
        "draw",
        lambda self, files, x, maps: calls.append((list(files), x, maps)) or list(files),
    )
    table = score_files(image_run, [bags / "test"], "cpu", maps=place / "unused").table
    assert table["map"].tolist() == table["file"].tolist()
    for files, x, maps in calls:
        assert len(files) == len(x) == len(maps) <= 4
        for file, image in zip(files, x, strict=True):
            with Image.open(file) as picture:
                np.testing.assert_array_equal(image[0], np.asarray(picture))


@pytest.mark.parametrize("kind", ["mapless_run", "table_run"])
def test_without_a_map_nothing_is_read_or_scored(kind, request, place, monkeypatch):
    monkeypatch.setattr(score, "images", pytest.fail)
    monkeypatch.setattr(score, "tables", pytest.fail)
    said = (
        "model=ocsvm has no anomaly map" if kind == "mapless_run" else "rows of numbers have no anomaly map"
    )
    with pytest.raises(SettingError, match=f"--maps .*: {said}"):
        score_files(request.getfixturevalue(kind), [place / "people.csv"], "cpu", maps=place / "none")
    assert not (place / "none").exists()


def test_maps_need_a_folder(image_run, bags):
    with pytest.raises(SettingError, match="it is a file"):
        score_files(image_run, [bags], "cpu", maps=bags / "test/0.normal/00.png")
    with pytest.raises(SettingError, match="no folder can be made there"):
        score_files(image_run, [bags], "cpu", maps=bags / "test/0.normal/00.png/maps")


# ------------------------------------------------------------------------------ the command line


def test_csv_and_json_say_the_same(image_run, bags, place, of_images, capsys):
    for name in ("new.csv", "new.json"):
        assert answer(["score", str(image_run), str(bags / "test"), "--output", str(place / name)]) == 0
        assert (
            f"{place / name}: 40 files, {of_images.n_anomalous} of them anomalous" in capsys.readouterr().out
        )
    pd.testing.assert_frame_equal(
        pd.read_csv(place / "new.csv"), of_images.table, rtol=1e-5, check_dtype=False
    )
    said = json.loads((place / "new.json").read_text())
    assert {name: said[name] for name in ("run", "threshold", "rule")} == {
        "run": image_run.name, "threshold": of_images.threshold, "rule": "the run's own"
    }  # fmt: skip
    pd.testing.assert_frame_equal(
        pd.DataFrame(said["rows"])[list(of_images.table)], of_images.table, check_dtype=False
    )
    answer(["score", str(image_run), str(bags / "test")])
    assert capsys.readouterr().out == (place / "new.csv").read_text()


@pytest.mark.parametrize("command", ["score", "report", "export"])
def test_an_output_that_cannot_be_written_is_named(image_run, bags, place, capsys, command):
    (place / "file").touch()
    output = str(place / "file" / {"score": "new.csv", "report": "tables", "export": "model.pt2"}[command])
    more = {"score": [str(bags / "test")], "report": [], "export": ["--format", "torch"]}[command]
    assert answer([command, str(image_run), *more, "--output", output]) == 2
    assert f"anomaly-bench: --output {output}: it cannot be written: " in capsys.readouterr().err


@pytest.mark.parametrize(("option", "name"), [("--output", "new.csv"), ("--maps", "maps")])
def test_nothing_is_scored_for_a_place_that_cannot_be_written(
    image_run, bags, place, capsys, option, name, monkeypatch
):
    monkeypatch.setattr(score, "score_files", lambda *_: pytest.fail("it scored"))
    (place / "file").touch()
    there = str(place / "file" / name)
    assert answer(["score", str(image_run), str(bags / "test"), option, there]) == 2
    assert f"anomaly-bench: {option} {there}: it cannot be written: " in capsys.readouterr().err


def test_a_folder_that_is_not_there_yet_can_be_written_to(place):
    check_writable("--output", place / "a/b/new.csv", place / "a/b")
    assert not (place / "a").exists()


def test_neither_the_run_nor_what_is_scored_is_written_over(image_run, bags, tmp_path, capsys):
    picture = next((bags / "test").rglob("*.png"))
    table = tmp_path / "mine.csv"
    table.write_text("a,b\n1,2\n")
    for files, option, target in (
        (bags, "--output", image_run / "run.json"),
        (table, "--output", table),
        (bags, "--maps", bags / "test" / "maps"),
        (picture, "--maps", image_run / "figures"),
    ):
        assert answer(["score", str(image_run), str(files), option, str(target)]) == 2
        assert f"{option} {target}: it would change " in capsys.readouterr().err
    assert table.read_text() == "a,b\n1,2\n"


def test_scores_do_not_come_among_the_tables_that_are_scored(
    table_run, image_run, bags, place, tmp_path, capsys
):
    folder = tmp_path / "tables"
    folder.mkdir()
    shutil.copy(place / "people.csv", folder / "a.csv")
    for name in ("a.csv", "scores.csv", "deeper/scores.CSV"):
        assert answer(["score", str(table_run), str(folder), "--output", str(folder / name)]) == 2
        assert (
            f"--output {folder / name}: it would change {folder}; name another place"
            in capsys.readouterr().err
        )
    assert (folder / "a.csv").read_text() == (place / "people.csv").read_text()
    assert [path.name for path in folder.iterdir()] == ["a.csv"]
    for _ in range(2):  # neither is ever read as a table, nor as an image
        assert answer(["score", str(table_run), str(folder), "--output", str(folder / "scores.json")]) == 0
        images = shutil.copytree(bags / "test", tmp_path / "images", dirs_exist_ok=True)
        assert answer(["score", str(image_run), str(images), "--output", str(images / "scores.csv")]) == 0


def test_rows_of_a_loader_of_one_s_own_have_columns_by_number():
    assert score.columns_of({"shape": [2], "columns": []}) == [Column("x0"), Column("x1")]
    assert score.columns_of({"shape": [2], "columns": ["a", "b"]}) == [Column("a"), Column("b")]


def test_the_exit_code_tells_of_anomalies_only_when_asked(image_run, bags, capsys):
    command = ["score", str(image_run), str(bags / "test")]
    assert answer([*command, "--threshold", "max_train"]) == 0
    assert answer([*command, "--threshold", "max_train", "--fail-on-anomaly"]) == 3
    assert answer([*command, "--threshold", "contamination=0", "--fail-on-anomaly"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "new.xlsx"], "--output new.xlsx: allowed are names that end in .csv or .json"),
        (["--threshold", "quantile=95"], "--threshold quantile=95: allowed are quantile=SHARE"),
    ],
)
def test_the_impossible_is_refused_in_one_line_before_any_work(arguments, said, bags, capsys, monkeypatch):
    monkeypatch.setattr(score, "load_run", pytest.fail)
    assert answer(["score", "runs/x", str(bags), *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert said in shown.err
    assert not shown.out


def test_scores_that_are_no_numbers_are_refused(image_run, bags, place, monkeypatch):
    load = score.load_run

    def diverged(*given):
        trained = load(*given)
        for parameter in trained.detector.parameters():
            parameter.data.fill_(float("nan"))
        return trained

    monkeypatch.setattr(score, "load_run", diverged)
    with pytest.raises(SettingError, match=r"40 of 40 scores are not finite, the first of .*00\.png"):
        score_files(image_run, [bags / "test"], "cpu")


def test_runs_scored_by_batch_statistics_are_named(image_run, bags, place, caplog):
    other = Path(shutil.copytree(image_run, place / "by_batch"))
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("batch_norm: eval", "batch_norm: batch"))
    score_files(other, [bags / "test/0.normal/00.png"], "cpu")
    assert "evaluation.batch_norm=batch" in caplog.text

"""Draws a stand-in for the private X-ray baggage sets UBA and FFOB, in GANomaly's folder layout.

    python scripts/make_baggage_demo.py data/uba
    anomaly-bench data=uba data.root=data/uba

Bags are random overlapping objects of organic matter, plastic, aluminium and steel. Each object adds its
thickness t to the beam's way, the beam of two energies leaves as I = I0 exp(-sum mu t) (Beer-Lambert) with
the noise of counted photons, and the picture is coloured as scanners do: orange organic, green light metals,
blue steel, darker where less gets through. Anomalous patches also hold a gun, a part of a gun, or a knife.

The pictures are drawn, none is a recording: SYNTHETIC.txt says so beside them, and numbers reached on them
say nothing about the real sets.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

Part = tuple[np.ndarray, str, float]
"""Corner points [n, 2] of a polygon, its material, and its thickness in the direction of the beam."""

Random = np.random.Generator

MU = {
    "organic": (1.1, 0.9),
    "plastic": (1.5, 1.12),
    "aluminium": (3.0, 1.9),
    "steel": (9.0, 4.2),
}
"""Attenuation per patch width at the lower and the higher energy."""

RATIOS = np.array(
    [1.2, 1.35, 1.6, 2.1]
)  # of the attenuations at the two energies, by which scanners tell materials
COLOURS = np.array(
    [(1.0, 0.6, 0.15), (0.9, 0.75, 0.2), (0.3, 0.72, 0.3), (0.15, 0.3, 0.85)]
)  # of these ratios

PHOTONS = 3000  # counted in one pixel without an object; their noise is what limits a scanner
OVERSAMPLING = 3  # drawn so many times larger, for smooth edges

NOTE = """These pictures are synthetic: drawn by scripts/make_baggage_demo.py of anomaly-bench, seed {seed}.
They stand in for the private data sets UBA and FFOB. Results on them say nothing about the real sets.
"""


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Four corners."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def ellipse(x: float, y: float, width: float, height: float) -> np.ndarray:
    """A polygon of 24 corners around (x, y)."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + width / 2 * np.cos(angle), y + height / 2 * np.sin(angle)], 1)


def stroke(points: np.ndarray, width: float) -> list[np.ndarray]:
    """The segments of a line `[n, 2]`, each a thin polygon."""
    segments = []
    for start, end in pairwise(points):
        along = (end - start) / (np.linalg.norm(end - start) + 1e-9)
        across = np.array([-along[1], along[0]]) * width / 2
        segments.append(np.array([start + across, end + across, end - across, start - across]))
    return segments


def book(rng: Random) -> list[Part]:
    """A slab of paper."""
    width, height = rng.uniform(0.3, 0.7, 2)
    return [(rectangle(0, 0, width, height), "organic", rng.uniform(0.2, 0.7))]


def bottle(rng: Random) -> list[Part]:
    """A cylinder of liquid, thickest along its axis, with a neck."""
    length, width = rng.uniform(0.4, 0.7), rng.uniform(0.16, 0.26)
    shells = [
        (rectangle(0, -width * share / 2, length, width * share / 2), "organic", 0.2)
        for share in (1, 0.85, 0.6)
    ]
    neck = (rectangle(length, -width / 6, length * 1.25, width / 6), "plastic", 0.15)
    return [*shells, neck]


def clothing(rng: Random) -> list[Part]:
    """Soft folds."""
    centres, sizes = rng.uniform(0, 0.6, (5, 2)), rng.uniform(0.2, 0.6, (5, 2))
    return [
        (ellipse(*centre, *size), "organic", rng.uniform(0.05, 0.15))
        for centre, size in zip(centres, sizes, strict=True)
    ]


def electronics(rng: Random) -> list[Part]:
    """A board in a plastic case, with chips and a few metal parts."""
    width, height = rng.uniform(0.25, 0.5, 2)
    parts: list[Part] = [
        (rectangle(0, 0, width, height), "plastic", 0.12),
        (rectangle(0.03, 0.03, width - 0.03, height - 0.03), "aluminium", 0.06),
    ]
    for x, y in rng.uniform(0.04, 0.85, (rng.integers(4, 9), 2)) * (width, height):
        box = rectangle(x, y, x + rng.uniform(0.02, 0.08), y + rng.uniform(0.02, 0.08))
        parts.append((box, str(rng.choice(["aluminium", "steel"])), rng.uniform(0.03, 0.12)))
    return parts


def cable(rng: Random) -> list[Part]:
    """A wire that wanders."""
    turns = np.cumsum(rng.normal(0, 0.5, 14)) + rng.uniform(0, 2 * np.pi)
    points = np.cumsum(0.06 * np.stack([np.cos(turns), np.sin(turns)], 1), 0)
    return [(segment, "steel", 0.05) for segment in stroke(points, 0.018)]


def coins(rng: Random) -> list[Part]:
    """A few discs."""
    return [
        (ellipse(x, y, 0.07, 0.07), "steel", 0.06) for x, y in rng.uniform(0, 0.3, (rng.integers(2, 6), 2))
    ]


def keys(rng: Random) -> list[Part]:
    """Two to four keys on a ring."""
    parts: list[Part] = []
    for angle in rng.uniform(0, 2 * np.pi, rng.integers(2, 5)):
        turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
        for outline in (ellipse(0.06, 0, 0.09, 0.08), rectangle(0.1, -0.015, 0.24, 0.015)):
            parts.append((outline @ turn, "steel", 0.05))
    return parts


def umbrella(rng: Random) -> list[Part]:
    """A long rod with thin ribs and cloth around it."""
    length = rng.uniform(0.6, 0.9)
    cloth: Part = (rectangle(0.1, -0.05, length, 0.05), "organic", 0.12)
    rods = [(rectangle(0, y - 0.006, length, y + 0.006), "steel", 0.05) for y in (-0.03, 0, 0.03)]
    return [cloth, *rods, (rectangle(-0.15, -0.03, 0, 0.03), "plastic", 0.2)]


def buckle(rng: Random) -> list[Part]:
    """A metal frame on a strap."""
    size = rng.uniform(0.1, 0.18)
    corners = np.array([(0, 0), (size, 0), (size, size), (0, size), (0, 0)])
    strap: Part = (rectangle(-0.5, 0.2 * size, 0.5, 0.8 * size), "organic", 0.1)
    return [strap, *[(segment, "steel", 0.09) for segment in stroke(corners, 0.025)]]


def tin(rng: Random) -> list[Part]:
    """A can: metal wall, filled."""
    width, height = rng.uniform(0.15, 0.25), rng.uniform(0.2, 0.4)
    inside = rectangle(0.015, 0.015, width - 0.015, height - 0.015)
    return [
        (rectangle(0, 0, width, height), "aluminium", 0.1),
        (inside, "organic", rng.uniform(0.1, 0.3)),
        (rectangle(0, 0, width, 0.02), "steel", 0.04),
    ]


def spanner(rng: Random) -> list[Part]:
    """A steel tool with a jaw at each end."""
    length, width = rng.uniform(0.4, 0.8), rng.uniform(0.05, 0.09)
    ends = [(ellipse(x, 0, 2.4 * width, 2.2 * width), "steel", 0.1) for x in (0, length)]
    jaws = [
        (rectangle(x, -width / 2, x + 1.2 * width, width / 2), "steel", -0.1) for x in (-1.2 * width, length)
    ]
    return [(rectangle(0, -width / 2, length, width / 2), "steel", 0.1), *ends, *jaws]


def charger(rng: Random) -> list[Part]:
    """A power supply: windings and a core in a plastic case."""
    width, height = rng.uniform(0.22, 0.34, 2)
    windings = [
        (rectangle(x, 0.06, x + 0.015, height - 0.06), "steel", 0.06)
        for x in np.arange(0.06, width - 0.06, 0.03)
    ]
    core = rectangle(0.04, 0.04, width - 0.04, height - 0.04)
    return [
        (rectangle(0, 0, width, height), "plastic", 0.2),
        (core, "steel", rng.uniform(0.06, 0.14)),
        *windings,
    ]


def batteries(rng: Random) -> list[Part]:
    """A row of cells, each with a denser core."""
    parts: list[Part] = []
    for x in 0.09 * np.arange(rng.integers(2, 6)):
        parts.append((rectangle(x, 0, x + 0.08, 0.32), "steel", 0.05))
        parts.append((rectangle(x + 0.02, 0.02, x + 0.06, 0.3), "steel", 0.06))
    return parts


def slide(rng: Random) -> list[Part]:
    """The upper part of a pistol, with bore, port and grooves."""
    grooves = [(rectangle(x, 0, x + 0.012, 0.15), "steel", -0.04) for x in np.arange(0.03, 0.18, 0.03)]
    return [
        (rectangle(0, 0, 1, 0.15), "steel", 0.2),
        (rectangle(0.25, 0.05, 1, 0.1), "steel", -0.12),
        (rectangle(0.4, 0, 0.58, 0.06), "steel", -0.08),
        *grooves,
    ]


def frame(rng: Random) -> list[Part]:
    """The lower part of a pistol: rail, grip, trigger and its guard."""
    slant = rng.uniform(0.05, 0.2)
    grip = np.array([(0.02, 0.15), (0.3, 0.15), (0.3 - slant, 0.75), (0.02 - slant, 0.75)])
    guard = np.array([(0.3, 0.24), (0.34, 0.4), (0.48, 0.41), (0.54, 0.24)])
    trigger = np.array([(0.42, 0.24), (0.4, 0.36)])
    thin = [(segment, "steel", 0.1) for segment in stroke(guard, 0.035) + stroke(trigger, 0.03)]
    return [(rectangle(0.02, 0.15, 0.8, 0.24), "steel", 0.12), (grip, "steel", 0.1), *thin]


def magazine(rng: Random) -> list[Part]:
    """A slanted box with cartridges in it."""
    box = np.array([(0, 0), (0.2, 0), (0.12, 0.6), (-0.08, 0.6)])
    rounds = [(ellipse(0.1 - 0.13 * y, y, 0.15, 0.05), "steel", 0.1) for y in np.arange(0.06, 0.45, 0.07)]
    return [(box, "steel", 0.05), *rounds, (rectangle(-0.1, 0.58, 0.14, 0.63), "steel", 0.1)]


def barrel(rng: Random) -> list[Part]:
    """A tube with a thicker chamber."""
    return [
        (rectangle(0, 0, 0.8, 0.1), "steel", 0.2),
        (rectangle(0, 0.03, 0.8, 0.07), "steel", -0.14),
        (rectangle(0, -0.02, 0.18, 0.12), "steel", 0.12),
    ]


def revolver(rng: Random) -> list[Part]:
    """Barrel, drum with its chambers, curved grip and guard."""
    grip = np.array([(0.0, 0.08), (0.22, 0.2), (0.12, 0.45), (0.06, 0.7), (-0.16, 0.66), (-0.08, 0.35)])
    guard = np.array([(0.2, 0.24), (0.24, 0.4), (0.38, 0.4), (0.42, 0.24)])
    chambers = [(rectangle(0.22, y, 0.46, y + 0.035), "steel", -0.08) for y in (0.02, 0.09, 0.16)]
    return [
        (rectangle(0.44, 0.02, 1, 0.12), "steel", 0.18),
        (rectangle(0.44, 0.05, 1, 0.09), "steel", -0.1),
        (rectangle(0.05, 0, 0.5, 0.24), "steel", 0.12),
        (rectangle(0.2, -0.01, 0.48, 0.25), "steel", 0.12),
        *chambers,
        (grip, "steel", 0.06),
        *[(segment, "steel", 0.1) for segment in stroke(guard, 0.035)],
    ]


def gun(rng: Random) -> list[Part]:
    """A pistol or a revolver, from its side."""
    return revolver(rng) if rng.random() < 0.3 else [*slide(rng), *frame(rng)]


def gun_part(rng: Random) -> list[Part]:
    """One part of a pistol taken to pieces."""
    return (slide, frame, magazine, barrel)[rng.integers(4)](rng)


def knife(rng: Random) -> list[Part]:
    """A tapering blade, thinner towards its edge, and a handle with a tang and rivets."""
    length, width = rng.uniform(0.5, 0.68), rng.uniform(0.1, 0.17)
    blade = np.array([(0, 0), (length * 0.75, 0), (length, width * 0.5), (length * 0.7, width), (0, width)])
    spine = np.array([(0, 0), (length * 0.75, 0), (length * 0.95, width * 0.45), (0, width * 0.5)])
    rivets = [(ellipse(x, width * 0.45, 0.04, 0.04), "steel", 0.1) for x in (-0.26, -0.17, -0.08)]
    return [
        (blade, "steel", 0.06),
        (spine, "steel", 0.05),
        (rectangle(-0.34, 0, 0, width * 0.9), "plastic", 0.25),
        (rectangle(-0.32, width * 0.25, 0, width * 0.65), "steel", 0.06),
        *rivets,
    ]


BENIGN: tuple[Callable[[Random], list[Part]], ...] = (
    *(book, bottle, clothing, clothing, electronics, cable),
    *(coins, keys, umbrella, buckle, tin, spanner, charger, batteries),
)
THREATS: dict[str, Callable[[Random], list[Part]]] = {"gun": gun, "gun-part": gun_part, "knife": knife}


def placed(parts: list[Part], rng: Random, centre: np.ndarray, scale: float) -> list[Part]:
    """An object turned at random, seen a little from the side, its middle at `centre`, on the unit square."""
    angle, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    flip = rng.choice([-1, 1])
    corners = np.concatenate([points for points, _, _ in parts])
    middle = (corners.min(0) + corners.max(0)) / 2
    return [
        (((points - middle) * (scale, flip * tilt * scale)) @ turn + centre, material, thickness * scale)
        for points, material, thickness in parts
    ]


def bag(rng: Random, threat: str | None) -> list[Part]:
    """The contents of one patch: the bag's own cloth, benign objects, and the threat if there is one."""
    parts: list[Part] = [(rectangle(-1, -1, 2, 2), "organic", rng.uniform(0.02, 0.12))]
    if rng.random() < 0.3:  # the bag's edge
        edge = rng.uniform(0.05, 0.3)
        parts = placed([(rectangle(-2, edge - 0.5, 2, 2), "organic", 0.1)], rng, np.array([0.5, 1.5]), 1)
    for _ in range(rng.integers(6, 13)):
        draw = BENIGN[rng.integers(len(BENIGN))]
        parts += placed(draw(rng), rng, rng.uniform(0, 1, 2), rng.uniform(0.6, 1.1))
    if threat is not None:
        parts += placed(THREATS[threat](rng), rng, rng.uniform(0.35, 0.65, 2), rng.uniform(0.45, 0.75))
    return parts


def attenuation(parts: list[Part], size: int) -> np.ndarray:
    """Sum of mu t over all parts, `[2, size, size]`, for the lower and the higher energy."""
    total = np.zeros((2, size, size), np.float32)
    large = size * OVERSAMPLING
    for points, material, thickness in parts:
        mask = Image.new("L", (large, large))
        ImageDraw.Draw(mask).polygon((points * large).ravel().tolist(), fill=255)
        covered = np.asarray(mask.reduce(OVERSAMPLING), dtype=np.float32)
        total += np.float32(thickness / 255) * np.array(MU[material], np.float32)[:, None, None] * covered
    return total.clip(0)


def scan(parts: list[Part], size: int, rng: Random) -> Image.Image:
    """The coloured X-ray picture of the parts, `size` x `size`."""
    low, high = attenuation(parts, size)
    ratio = (low + 1e-3) / (high + 1e-3)
    colour = np.stack([np.interp(ratio, RATIOS, COLOURS[:, channel]) for channel in range(3)], -1)
    counted = rng.poisson(PHOTONS * np.exp(-(low + high) / 2)) / PHOTONS
    through = counted.clip(0, 1)[..., None]
    picture = through + (1 - through) * colour * np.sqrt(through)
    return Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8))


def write(folder: Path, count: int, size: int, key: tuple[int, ...], threat: str | None = None) -> None:
    """Draw `count` patches into a new folder; each depends on `key` and its number alone."""
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng((*key, number))
        scan(bag(rng, threat), size, rng).save(folder / f"{number:05d}.png")


def main() -> None:
    """Draw the whole set into OUT, which appears only when it is complete."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--train", type=int, default=2000, help="normal patches to train on (%(default)s)")
    parser.add_argument("--test", type=int, default=500, help="normal patches to test on (%(default)s)")
    parser.add_argument(
        "--threats", type=int, default=100, help="patches of each kind of threat (%(default)s)"
    )
    parser.add_argument("--size", type=int, default=64, help="of a patch, in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds, other bags (%(default)s)")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} is there already; name a new folder")
    if min(options.train, options.test, options.threats, options.size) < 1 or options.seed < 0:
        parser.error("--train, --test, --threats and --size are at least 1, --seed at least 0")
    unfinished = options.out.with_name(f"{options.out.name}.{options.seed}.unfinished")
    if unfinished.exists():
        parser.error(f"{unfinished} is left from a run that did not end; remove it")
    write(unfinished / "train/0.normal", options.train, options.size, (options.seed, 0))
    write(unfinished / "test/0.normal", options.test, options.size, (options.seed, 1))
    for number, threat in enumerate(THREATS, 2):
        folder = unfinished / "test/1.abnormal" / threat
        write(folder, options.threats, options.size, (options.seed, number), threat)
    (unfinished / "SYNTHETIC.txt").write_text(NOTE.format(seed=options.seed), encoding="utf-8")
    unfinished.rename(options.out)


if __name__ == "__main__":
    main()

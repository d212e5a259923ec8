"""The runs of a sweep: base configs times allocations times seeds, without duplicates."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ffn_alloc import shapes
from ffn_alloc.config import Config
from ffn_alloc.errors import BadInput

_PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper.py"
POSITIONS = ("first", "middle", "final")
_LONGEST_NAME = 40


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: its directory, and the arguments that `python -m ffn_alloc.main` gets."""

    name: str
    workdir: Path
    arguments: tuple[str, ...]
    config: Config

    @property
    def job_name(self) -> str:
        """The name, and what tells it from the run of this name in another sweep's directory."""
        return f"{self.name}-{_mark(self.workdir.parent.resolve())}"

    @property
    def dns_name(self) -> str:
        """`job_name` as Google Cloud and Kubernetes take it: pods add to it, of 63 characters."""
        signs = (c if c.isascii() and c.isalnum() else "-" for c in self.job_name.lower())
        name = "".join(signs).strip("-")
        if len(name) > _LONGEST_NAME:
            mark = _mark(self.workdir.resolve())
            name = f"{name[: _LONGEST_NAME - 1 - len(mark)].rstrip('-')}-{mark}"
        return name

    @property
    def command_arguments(self) -> list[str]:
        return [*self.arguments, f"--workdir={self.workdir}"]


def bases(config: str | None, sizes: Sequence[str]) -> dict[str, list[str]]:
    """The ends of names ('285m') with the arguments of their configs."""
    if config:
        name = Path(config.partition(":")[0]).stem
        return {name: [f"--config={config}"]}
    return {size: [f"--config={_PAPER}:baseline_{size}"] for size in sizes}


def allocations(positions: Sequence[str], ratios: Sequence[str]) -> list[str]:
    """'uniform' first, then every band; ratios in percent."""
    for position in positions:
        if position not in POSITIONS:
            remedy = f"Choose from {', '.join(POSITIONS)}"
            raise BadInput("--positions", position, "is no position", remedy)
    for ratio in ratios:
        if not re.fullmatch(r"\d+", ratio) or not 0 < int(ratio) <= 100:
            raise BadInput("--ratios", ratio, "is no whole number of percent", "Give 10 to 100")
    return ["uniform", *(f"{position}:{ratio}%" for position in positions for ratio in ratios)]


def specs_in(text: str) -> list[str]:
    """The specs of a list with commas. Some have commas too, but each begins with a letter."""
    return [spec.strip() for spec in re.split(r",+\s*(?=[a-z]|$)", text) if spec.strip()]


def expand(
    directory: Path,
    bases: dict[str, list[str]],
    specs: Sequence[str],
    seeds: Sequence[str],
    overrides: Sequence[str],
    load: Callable[[Sequence[str]], Config],
) -> tuple[list[Run], list[str]]:
    """(the runs, the names left out as duplicates of an earlier one).

    `bases` maps the end of a name ('285m') to the arguments of its config; `load` makes a Config
    of arguments. Runs of one base and seed are the same if every layer is as wide.
    """
    _check_not_ours(overrides)
    for seed in seeds:
        if not re.fullmatch("0|[1-9][0-9]*", seed):
            raise BadInput("--seeds", seed, "is no seed", "Give whole numbers, such as 0,1,2")
    runs: dict[str, Run] = {}
    duplicates, seen = [], set()
    for base, given in bases.items():
        for spec in specs:
            for seed in seeds:
                name = f"{_words(spec)}_{base}_s{seed}"
                settings = {"model.allocation": spec, "seed": seed, "name": name}
                own = [f"--config.{key}={value}" for key, value in settings.items()]
                arguments = (*given, *overrides, *own)
                config = load(arguments)
                key = (base, config.seed, config.model.ffn_dims)
                if key in seen:
                    duplicates.append(name)
                    continue
                seen.add(key)
                run = Run(name, directory / name, arguments, config)
                if other := runs.get(run.dns_name):
                    problem = f"gets the name {name}, too like {other.config.model.allocation}'s"
                    raise BadInput("--allocations", spec, problem, "Give it another --dir")
                runs[run.dns_name] = run
    return list(runs.values()), duplicates


def _check_not_ours(overrides: Sequence[str]) -> None:
    """BadInput for what every run has of its own."""
    flags = {
        "seed": "--seeds",
        "model.allocation": "--allocations",
        "name": "another --dir",
        "config": "--config before --",
    }
    for override in overrides:
        key = override.partition("=")[0].lstrip("-").removeprefix("config.")
        if key in flags:
            raise BadInput("--", override, "is what the sweep sets", f"Use {flags[key]}")


def _mark(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:6]


def _words(spec: str) -> str:
    """A spec as a part of a file's name: 'uniform' is the baseline, 'middle:70%' is middle70, as is
    'middle:0.7': however it is spelled, a sweep finds the run that it has begun."""
    if spec == "uniform":
        return "baseline"
    shape = shapes.parse(spec)
    text = str(shape)
    if isinstance(shape, shapes.Band) and (percent := 100 * shape.ratio).denominator == 1:
        _, at, shift = text.partition("@")
        text = f"{shape.position}:{percent}{at}{shift}"
    told_apart = text.replace("@+", "p").replace("@-", "m")
    return re.sub(r"[^A-Za-z0-9.+-]", "", re.sub("[,/]", "-", told_apart))

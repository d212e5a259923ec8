"""A report from run directories: read, compared, drawn and written."""

from collections.abc import Sequence

from ffn_alloc.errors import missing_package
from ffn_alloc.paths import AnyPath
from ffn_alloc.reporting import output
from ffn_alloc.reporting.comparison import AVERAGE, compare
from ffn_alloc.reporting.study import read_study
from ffn_alloc.reporting.words import answer


def write_report(
    baseline: Sequence[AnyPath],
    runs: Sequence[AnyPath],
    out: AnyPath,
    step: int | None = None,
    allow_different: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> list[str]:
    """Writes report.html, report.md, results.csv and figures/ into `out`; returns the answers.

    step: of the results, by default the last that all runs of a size have. allow_different: fields
    in which runs may differ. left_out: sentences about runs that were not given, for the warnings.
    BadInput, before anything is written, for what cannot be compared.
    """
    output.check_free(out)
    _check_matplotlib()
    from ffn_alloc.reporting import html, markdown
    from ffn_alloc.reporting.contents import make_document
    from ffn_alloc.reporting.drawing import style
    from ffn_alloc.reporting.table import results_csv

    study = read_study(baseline, runs, step, allow_different)
    comparisons = compare(study)
    with style():
        document = make_document(study, comparisons, left_out)
    files: dict[str, str | bytes] = {
        "report.html": html.render(document),
        "report.md": markdown.render(document),
        "results.csv": results_csv(comparisons),
    }
    for picture in document.pictures():
        files[f"figures/{picture.name}.svg"] = picture.svg
        files[f"figures/{picture.name}.png"] = picture.png
    output.write(out, files)
    averages = [c for c in comparisons if c.task == AVERAGE]
    return [answer([c for c in averages if c.size is size]) for size in study.sizes]


def _check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_package("report", "figures", "matplotlib", "eval") from error

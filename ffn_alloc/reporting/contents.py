"""What stands in a report, and in which order: the answer first, the methods last."""

from collections.abc import Iterator, Sequence

from ffn_alloc.reporting import tables, words
from ffn_alloc.reporting.comparison import AVERAGE, AVERAGE_ACCURACY, Comparison
from ffn_alloc.reporting.curves import Curve, read_curve
from ffn_alloc.reporting.document import (
    Block,
    Bullets,
    Document,
    Paragraph,
    Section,
    TableBlock,
)
from ffn_alloc.reporting.figures import heatmap_picture, improvement_picture, widths_picture
from ffn_alloc.reporting.loss_figure import loss_picture
from ffn_alloc.reporting.methods import PARAGRAPHS
from ffn_alloc.reporting.runs import Cell, Run
from ffn_alloc.reporting.study import Study

_SHORT_TABLE, _LONG_TABLE = 6, 40  # rows; what is longer is folded away


def make_document(
    study: Study, comparisons: Sequence[Comparison], left_out: Sequence[str]
) -> Document:
    """`left_out`: what to say of runs that are not in the study."""
    curves = {run: read_curve(run.workdir, size.step) for size in study.sizes for run in size.runs}
    sections = [
        _answer(study, comparisons, curves, left_out),
        _averages(comparisons),
        _tasks(study, comparisons),
        _training(study, curves),
        _models(study),
        Section("Runs", (TableBlock("", tables.runs_table(study.sizes, curves)),)),
        Section("Methods", tuple(map(Paragraph, PARAGRAPHS))),
    ]
    bases = {words.baseline_name(size.baseline) for size in study.sizes}
    return Document(f"FFN allocations compared with {words.listed(sorted(bases))}", tuple(sections))


def _answer(
    study: Study,
    comparisons: Sequence[Comparison],
    curves: dict[Run, Curve | None],
    left_out: Sequence[str],
) -> Section:
    blocks: list[Block] = []
    for size in study.sizes:
        averages = [c for c in comparisons if c.size is size and c.task == AVERAGE]
        prefix = f"{size.label}: " if len(study.sizes) > 1 else ""
        blocks.append(Paragraph(prefix + words.answer(averages), lead=True))
    warnings = [*left_out, *_warnings(study, comparisons, curves)]
    if warnings:
        blocks.append(Bullets(tuple(warnings), warning=True))
    return Section("", tuple(blocks))


def _warnings(
    study: Study, comparisons: Sequence[Comparison], curves: dict[Run, Curve | None]
) -> Iterator[str]:
    """What a reader must know before believing a number."""
    for difference in study.differences:
        yield f"Compared although they differ (--allow-different): {difference}."
    lonely = {
        c.cell.label for c in comparisons if c.improvement and not c.improvement.seed_noise_known
    }
    if lonely:
        yield (
            f"One seed of {words.listed(sorted(lonely))} and of its baseline: the noise between "
            "seeds is unknown, the intervals and p-values cover the items only, and no allocation "
            "is called better or worse. Train at least three seeds of each."
        )
    for size in study.sizes:
        at = f" ({size.label})" if len(study.sizes) > 1 else ""
        unpaired = [cell for cell in size.cells if cell.seeds != size.baseline.seeds]
        if unpaired:
            each = [f"{cell.label} has {_seeds(cell)}" for cell in unpaired]
            yield (
                f"Other seeds than the baseline's, {_seeds(size.baseline)}{at}: "
                f"{words.listed(each)}. They are compared as independent runs, which is less "
                "certain. Train what is missing, or leave out what has no counterpart."
            )
        own = [c for c in comparisons if c.size is size]
        blind = _at_chance(own)
        if blind:
            yield (
                f"No better than guessing{at}, the baseline and the allocations alike: {blind}. "
                "Differences there are luck, say nothing, and add noise to the average."
            )
        undefined = sorted({c.task for c in own if c.improvement is None and not c.is_average})
        if undefined:
            yield (
                f"{words.listed(undefined)}{at}: the baseline's score is too near 0, for how "
                "uncertain it is, to be divided by; left out of the averages."
            )
        if size.left_out:
            yield f"{words.listed(size.left_out)}{at}: not all runs have results; left out."
        limited = [
            task
            for task, found in size.results.items()
            if any(r.limit and len(r.item_ids) >= r.limit for r in found.values())
        ]
        if limited:
            yield f"{words.listed(limited)}{at}: only a part of the items was scored (--limit)."
        if not size.finished:
            steps = max(run.train_steps for run in size.runs)
            yield f"Compared at step {size.step:,} of {steps:,}{at}: training had not ended."
        missing = [run.name for run in size.runs if curves[run] is None]
        if missing:
            yield f"{words.listed(missing)}{at}: no training curve in metrics.jsonl."


def _seeds(cell: Cell) -> str:
    return f"seed{'s' * (len(cell.seeds) > 1)} {words.listed([str(seed) for seed in cell.seeds])}"


def _at_chance(comparisons: Sequence[Comparison]) -> str:
    """'winogrande, hellaswag (2 of 3 allocations)', '' if all tasks tell something."""
    names = []
    for task in sorted({c.task for c in comparisons if c.uninformative and not c.is_average}):
        group = [c.uninformative for c in comparisons if c.task == task]
        part = "" if all(group) else f" ({sum(group)} of {len(group)} allocations)"
        names.append(task + part)
    return words.listed(names)


def _averages(comparisons: Sequence[Comparison]) -> Section:
    averages = [c for c in comparisons if c.task == AVERAGE]
    pictures = improvement_picture(comparisons), heatmap_picture(averages)
    blocks: list[Block] = [picture for picture in pictures if picture]
    title = "Average of all tasks, one row an allocation"
    blocks.append(TableBlock(title, tables.averages_table(averages)))
    accuracies = [c for c in comparisons if c.task == AVERAGE_ACCURACY]
    if accuracies:
        title = "Average of the accuracies alone, without perplexity and bits per byte"
        folded = len(accuracies) > _SHORT_TABLE
        blocks.append(TableBlock(title, tables.averages_table(accuracies), folded))
    sentences = tuple(words.sentence(c) for c in averages)
    if len(sentences) > 1:
        blocks.append(Bullets(sentences, folded_under="Each average in words"))
    return Section("Relative improvement", tuple(blocks))


def _tasks(study: Study, comparisons: Sequence[Comparison]) -> Section:
    blocks: list[Block] = []
    single = [c for c in comparisons if not c.is_average]
    for size in study.sizes:
        if len(size.cells) > 1:
            caption = f"{size.label}: relative improvement in percent; blue better, orange worse, "
            caption += "bold: after Holm's correction"
            own = [c for c in comparisons if c.size is size]
            blocks.append(TableBlock(caption, tables.matrix_table(own)))
    details = tables.details_table(single)
    folded = len(details.rows) > _LONG_TABLE
    title = f"All {len(details.rows)} comparisons, one row an allocation and task"
    blocks.append(TableBlock(title if folded else "", details, folded))
    chance = tables.chance_table(single)
    if chance:
        caption = "What guessing (see Methods) would score: where nothing is better, a comparison "
        caption += "says nothing"
        blocks.append(TableBlock(caption, chance))
    return Section("Task by task", tuple(blocks))


def _training(study: Study, curves: dict[Run, Curve | None]) -> Section:
    blocks: list[Block] = []
    for number, size in enumerate(study.sizes, 1):
        of_cells = {
            cell: [curve for run in cell.runs if (curve := curves[run]) is not None]
            for cell in (size.baseline, *size.cells)
        }
        drawn = loss_picture(size, of_cells, number)
        if drawn:
            blocks.append(drawn)
    return Section("Training", tuple(blocks) or (Paragraph("No curves were logged."),))


def _models(study: Study) -> Section:
    pictures = [widths_picture(size, number) for number, size in enumerate(study.sizes, 1)]
    table = TableBlock("Parameters with embeddings", tables.models_table(study.sizes))
    return Section("Models", (*pictures, table))

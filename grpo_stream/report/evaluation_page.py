"""The page of an evaluation: figures with their intervals, where answers fall, and pictures."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from grpo_stream.report.answer_cards import Answer
from grpo_stream.report.evaluation_charts import evaluation_charts
from grpo_stream.report.evaluation_tables import (
    TITLES,
    cell_text,
    compared_figures,
    difference_text,
    figure_rows,
    figure_text,
    figure_title,
    shown_figures,
)
from grpo_stream.report.gallery import CARD_STYLE
from grpo_stream.report.html_page import (
    Table,
    charts_html,
    header_html,
    notes_html,
    page_html,
    tables_html,
)

_NOTES = (
    (
        "Point accuracy: the answered point, or the centre of the answered box, is in the true "
        "box. An answer that gives no place is a miss."
    ),
    (
        "Mean IoU and Acc@0.5 (the share with at least 0.5) are over all samples with a true box; "
        "an answer that is no valid box has 0. Left out where no box was asked for or answered."
    ),
    (
        "With refusals: hits, right refusals and whole sets, over all samples. Refusals: right "
        "ones, where nothing is there; false refusals: where something is. Set F1: of all answered "
        "places, where all of several are wanted."
    ),
    "pass@k: the chance that k of the sampled answers hold a right one (Chen et al., 2021).",
    (
        "Mean distance: from the answered point to the true centre, as a share of the image's "
        "diagonal, over the answers that give a place."
    ),
    (
        "Intervals: 95 %, bootstrap over images, each drawn with all of its samples. Where all "
        "samples of a row are alike, Wilson's interval for so many images; none for one image."
    ),
    "Sizes are the true box's share of the image's area.",
)


def evaluation_page(
    results: Mapping[str, Any],
    answers: Sequence[Answer],
    galleries: Iterable[tuple[str, str, Sequence[str]]],
) -> str:
    """The page's HTML.

    Args:
        results: What ``results.json`` holds.
        answers: What ``answers.jsonl`` holds.
        galleries: Title, a word on it, and cards from :func:`~.answer_card.answer_card`.
    """
    title = f"Evaluation of {results['model']}"
    whole = results["figures"]
    counts = f"{whole['num_samples']:,} samples on {whole['num_images']:,} images"
    lead = f"{counts} of {', '.join(results['data']['names'])}. {_way(results['settings'])}"
    names = [name for name in shown_figures(results) if name != "point_accuracy"]
    facts = [
        (TITLES["point_accuracy"], figure_text("point_accuracy", whole["point_accuracy"])),
        *((figure_title(name), figure_text(name, whole[name])) for name in names),
    ]
    body = (
        header_html(title, lead, facts)
        + _bad_samples(results["bad_samples"])
        + _figures_html(results)
        + "".join(map(_comparison_html, results["comparisons"]))
        + charts_html(evaluation_charts(results, answers))
        + _galleries_html(answers, galleries)
        + tables_html(_tables(results))
        + notes_html("What the figures are", _NOTES)
    )
    return page_html(title, body, CARD_STYLE + _STYLE)


def _way(settings: Mapping[str, Any]) -> str:
    """How the samples were answered, as a sentence."""
    count, zoom = settings.get("num_samples") or 1, settings.get("zoom")
    if count > 1:
        return f"The place with most votes of {count} sampled answers, each sample once."
    looks = "" if zoom is None else f", and a second look at a crop of 1/{zoom:g} of the sides"
    return f"Greedy answers, each sample once{looks}."


def _figures_html(results: Mapping[str, Any]) -> str:
    """All figures in one table; point accuracy as a bar with its interval."""
    names = [name for name in shown_figures(results) if name != "point_accuracy"]
    head = "".join(
        f"<th scope='col'>{escape(word)}</th>"
        for word in (
            "",
            "samples",
            "images",
            TITLES["point_accuracy"],
            "",
            *(figure_title(n) for n in names),
        )
    )
    rows = []
    for label, figures in figure_rows(results):
        if label is None:
            rows.append(
                f"<tr class='field'><th scope='rowgroup'>{escape(figures['name'])}</th></tr>"
            )
            continue
        cells = [f"{figures['num_samples']:,}", f"{figures['num_images']:,}"]
        accuracy = figures["point_accuracy"]
        others = [cell_text(name, figures[name]) for name in names]
        rows.append(
            f"<tr><th scope='row'>{escape(label)}</th>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + f"<td class='bar'>{_bar(accuracy)}</td>"
            + f"<td>{escape(cell_text('point_accuracy', accuracy))}</td>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in others)
            + "</tr>"
        )
    return (
        "<section class='figures'><h2>Figures</h2><div class='scroll'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>\n"
    )


def _bar(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    value, low, high = (figure[end] for end in ("value", "low", "high"))
    whisker = ""
    if low is not None and high is not None:
        whisker = f"<u style='left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%'></u>"
    return f"<span><i style='width:{100 * value:.2f}%'></i>{whisker}</span>"


def _comparison_html(comparison: Mapping[str, Any]) -> str:
    rows = []
    for name, here, there, difference in compared_figures(comparison):
        low, high = difference["low"], difference["high"]
        is_clear = low is not None and (low > 0 or high < 0)
        cells = [
            figure_text(name, here, with_interval=False),
            figure_text(name, there, with_interval=False),
            difference_text(name, difference),
            "clear" if is_clear else "within chance",
        ]
        rows.append([figure_title(name), *cells])
    other = f"{comparison['model']} ({comparison['path']})"
    moved = (
        f"{comparison['num_gained']:,} samples are hits here and misses there, "
        f"{comparison['num_lost']:,} the reverse."
    )
    header = ("", "here", "there", "here - there, paired by sample", "")
    table = tables_html([Table(f"Compared with {other}", rows, header)])
    return f"<div class='compared'>{table}<p class='under'>{escape(moved)}</p></div>"


def _galleries_html(
    answers: Sequence[Answer], galleries: Iterable[tuple[str, str, Sequence[str]]]
) -> str:
    """Pictures by kind; the first kind has the legend of all."""
    is_second_look = any(answer.get("first_look") for answer in answers)
    looked_at = "<span class='look'>looked at again</span>" if is_second_look else ""
    legend = (
        "<p class='legend'><span class='truth'>true place</span>"
        "<span class='right'>answer, a hit</span><span class='wrong'>answer, a miss</span>"
        f"<span class='zoom'>shown larger beside it</span>{looked_at}"
        "<span class='hand'>click a picture to enlarge it</span></p>"
    )
    return "".join(
        f"<section><h2>{escape(title)}</h2><p class='under'>{escape(note)}</p>"
        f"{'' if number else legend}<div class='cards'>{''.join(cards)}</div></section>\n"
        for number, (title, note, cards) in enumerate(galleries)
    )


def _tables(results: Mapping[str, Any]) -> list[Table]:
    tables: list[Table] = []
    total = results["figures"]["num_samples"]
    if results["failures"]:
        reasons = [
            (reason.replace("_", " "), f"{count:,}", f"{count / total:.1%}")
            for reason, count in results["failures"].items()
        ]
        tables.append(Table("Unreadable answers by reason", reasons))
    for title in ("data", "timing", "versions", "task", "settings"):
        given = [(name, value) for name, value in results[title].items() if value is not None]
        rows = [(name.replace("_", " "), _plain(value)) for name, value in given]
        tables.append(Table(title.capitalize(), rows))
    return tables


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _bad_samples(bad: Sequence[str]) -> str:
    if not bad:
        return ""
    shown = "".join(f"<li>{escape(where)}</li>" for where in bad[:20])
    more = f"{len(bad)} samples could not be read and are left out of all figures:"
    return f"<section class='bad'><p>{escape(more)}</p><ul>{shown}</ul></section>"


_STYLE = """
main { max-width: 1320px; }
.lead { max-width: none; }
.figures .scroll { background: var(--paper); border: 1px solid var(--rule); border-radius: 10px;
  padding: 8px 20px 14px; }
.figures td, .figures thead th { text-align: right; min-width: 0; white-space: nowrap;
  padding: 5px 0 5px 18px; vertical-align: middle; }
.figures th[scope=row] { padding-left: 14px; color: var(--ink); white-space: nowrap; }
.figures tbody tr:first-child th, .figures tbody tr:first-child td { font-weight: 650; }
.figures tbody tr:first-child th { padding-left: 0; }
.figures .field th { padding: 16px 0 5px; font-weight: 600; color: var(--pale); }
.figures .field { border-top: 0; }
.figures .field + tr { border-top: 1px solid var(--rule); }
.figures .bar { width: 26%; min-width: 180px; }
.figures thead th:nth-child(4) { text-align: left; }
.bar span { position: relative; display: block; height: 14px; border-radius: 3px;
  background: var(--stage); }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--line-1);
  opacity: .75; }
.bar u { position: absolute; top: 50%; height: 8px; margin-top: -4px;
  border: solid var(--ink); border-width: 0 1.5px; }
.bar u::before { content: ""; position: absolute; left: 0; right: 0; top: 50%; height: 1.5px;
  margin-top: -.75px; background: var(--ink); }
.charts { margin-top: 36px; }
.under { margin: -4px 0 14px; color: var(--pale); font-size: .92rem; }
.bad { padding: 2px 18px; border-radius: 10px; color: var(--hint); background: var(--hint-ground); }
.tables { display: block; columns: 3 300px; column-gap: 12px; }
.tables > div { break-inside: avoid; margin-bottom: 12px; }
.under + .legend { margin-top: 8px; }
.legend .look::before { border: 2px solid rgb(125, 60, 200); border-radius: 1px; }
.compared .tables { columns: auto; }
.compared .tables + .under { margin: -4px 2px 0; }
.words dd { overflow-wrap: anywhere; }
"""

"""The top of the page: which data, and what was found."""

from html import escape

from immiscible_diffusion.reporting.analysis.plots import Axis, Row, rows_of_bars
from immiscible_diffusion.reporting.analysis.sentences import sentences
from immiscible_diffusion.reporting.analysis.values import (
    Analysis,
    count,
    figure,
    known,
    real,
    reals,
    record,
    text,
    words,
)
from immiscible_diffusion.reporting.elements import facts, panel


def title_of(analysis: Analysis) -> str:
    """Of the page."""
    # Of a folder or file its own name; the whole path stands at the end of the page.
    name = text(analysis.data.get("name")).rstrip("/").rpartition("/")[2]
    return f"{name or 'Data'}: how mixed they are, and what pairing does"


def head(analysis: Analysis) -> str:
    """What the data are; the sentences; the advice; the figure of the first sentence."""
    note = text(analysis.data.get("note"))
    parts = [f"<h1>{escape(title_of(analysis))}</h1>", facts(_figures(analysis))]
    parts.append(f'<p class="note">{escape(note)}</p>' if note else "")
    summary = text(analysis.values.get("given_summary"))
    parts.append(f'<p class="lead"><b>{escape(summary)}</b></p>' if summary else "")
    found = sentences(analysis)
    listed = "".join(
        f"<li{kind}><p><b>{escape(subject)}.</b> {escape(sentence)}</p></li>"
        for kind, (subject, sentence) in zip(_kinds(len(found)), found, strict=True)
    )
    parts.append(f'<ul class="findings">{listed}</ul>' if found else "")
    return "\n".join(part for part in [*parts, _advice(analysis), _figure(analysis)] if part)


def _kinds(count: int) -> list[str]:
    """The first of the sentences is the main one."""
    return [' class="main"', *[""] * count][:count]


def _figures(analysis: Analysis) -> list[tuple[str, str]]:
    data = analysis.data
    shape = " x ".join(f"{size:g}" for size in reals(data.get("shape")))
    mirrored = ", mirror images among them" if data.get("mirrored") is True else ""
    kind = text(record(analysis.values.get("path")).get("kind"))
    probes = real(analysis.values.get("probes"))
    figures = [(count(analysis.images), f"{analysis.things}{mirrored}"), (shape, "numbers each")]
    figures += [(figure(real(data.get("rms"))), "root mean square"), (kind, "path")]
    figures += [
        (count(probes), "noisy points per level"),
        (str(len(analysis.couplings)), "couplings"),
    ]
    figures.append((text(data.get("cond")), "given as condition"))
    figures.append(("mask", "in use" if data.get("masked") is True else ""))
    figures.append((text(analysis.values.get("hardware")), text(analysis.values.get("date"))))
    return [(a, b) for a, b in figures if a not in ("", "-") and b]


def _advice(analysis: Analysis) -> str:
    advice = record(analysis.values.get("advice"))
    listed = "".join(f"<li>{escape(line)}</li>" for line in words(advice.get("sentences")))
    if not listed:
        return ""
    recommends = advice.get("recommends") is True
    title = "What is recommended" if recommends else "Nothing is recommended; what is known"
    kind = " helps" if recommends else ""
    return f'<div class="advice{kind}"><b>{title}</b><ul>{listed}</ul></div>'


def _figure(analysis: Analysis) -> str:
    t = analysis.level
    panels = []
    for number, given in enumerate([*analysis.conditions[:1], ""]):
        usable = [c for c in analysis.couplings if not c.failed]
        rows = [Row(c.tag, c.look, c.given(given).at(t, "effective")) for c in usable]
        if not any(known(row.mean) for row in rows):
            continue
        whole = [c.given(given).candidates for c in analysis.couplings]
        whole = [value for value in whole if value > 0]
        title = f"{'Given the condition' if given else 'Over all data'}, t = {t:g}"
        axis = Axis(f"effective number of {analysis.things}", reference=max(whole, default=1))
        panels.append(panel(rows_of_bars(f"head-{number}", title, rows, axis)))
    if not panels:
        return ""
    condition = f"The condition: {', '.join(analysis.conditions[:1])}. " if len(panels) > 1 else ""
    meaning = (
        f"{condition}How many {analysis.things} a noisy point may come from, exp of the "
        "posterior's entropy; gray: all there are. Fewer is less mixed: fewer answers for the "
        "network to average over. ± one standard error."
    )
    return (
        f'<figure><div class="panels two">{"".join(panels)}</div>'
        f"<figcaption>{escape(meaning)}</figcaption></figure>"
    )

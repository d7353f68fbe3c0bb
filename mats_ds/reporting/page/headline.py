"""The beginning of a page: which run this is, when and where it ran, the question that the report
asks of it, and the answer."""

from __future__ import annotations

import re
from calendar import month_name
from datetime import datetime, timedelta, timezone
from html import escape

from mats_ds.core.format import format_bytes, format_count, format_duration, shorten
from mats_ds.core.run_dir import FINISHED
from mats_ds.reporting.budget import Budget, Check, Verdict
from mats_ds.reporting.figures import Figures
from mats_ds.reporting.page.markup import KICKER
from mats_ds.reporting.scope import KILLED, RUNNING

TASKS = {"pretrain": "pre-training", "finetune": "fine-tuning"}
ENDINGS = {RUNNING: "still going on when this was written", KILLED: "killed, or it hangs"}
_STARTED = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d)(?::\d\d)?(?:([+-])(\d\d):?(\d\d))?", re.ASCII)


def name_run(figures: Figures) -> str:
    """The run's name for people: that of its folder."""
    return shorten(figures.run_dir.absolute().name or figures.run.info.recipe_name)


def title_of(figures: Figures, verdict: Verdict) -> str:
    """The page's title, with what PASS is limited to: it is what a browser's tab shows."""
    where = f" {verdict.qualifier}" if verdict.qualifier else ""
    return f"{_word(verdict)}{where}: {name_run(figures)}"


def build_header(figures: Figures, verdict: Verdict) -> str:
    """Name, recipe, data, when, where."""
    info = figures.run.info
    facts = {
        "task": TASKS.get(info.task, info.task),
        "recipe": info.recipe_name,
        "model": f"{shorten(info.model_name)}, {info.num_parameters / 1e6:.1f} M parameters",
        "data": info.data_name or "not named",
        "ran on": f"{info.world_size} × {shorten(info.device_name)}",
        "started": show_started(info.started),
        "steps": _describe_length(figures, verdict),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(shorten(text))}</dd></div>" for name, text in facts.items())
    return f'<header>\n{KICKER}\n<h1>{escape(name_run(figures))}</h1>\n<dl class="facts">{items}</dl>\n</header>\n'


def build_banner(figures: Figures, budget: Budget, verdict: Verdict) -> str:
    """The question, the answer in a word and in checks, and what the answer does not say."""
    kind = "pass" if verdict.passed else "open" if verdict.is_waiting else "fail"
    kind += "" if verdict.is_about_the_budget else " limited"
    qualifier = f'<span class="qualifier">{escape(verdict.qualifier)}</span>' if verdict.qualifier else ""
    start = "But" if verdict.passed else "Note"
    caveats = "".join(f'<p class="caveat"><b>{start}:</b> {escape(caveat)}.</p>' for caveat in verdict.caveats)
    before, after = (caveats, "") if verdict.passed else ("", caveats)
    checks = "".join(map(_check, verdict.checks))
    advice = "" if figures.outcome is None else shorten(figures.outcome.advice)
    advice = f'<p class="advice"><b>What would help:</b> {escape(advice)}</p>' if advice else ""
    return f"""<section class="verdict {kind}" aria-label="verdict">
<p class="word">{_word(verdict)}{qualifier}</p>
<div><p class="question">{escape(_question(budget))}</p>
{before}<ul>{checks}</ul>{after}{advice}</div>
</section>
"""


def _question(budget: Budget) -> str:
    size = format_bytes(budget.memory_per_gpu_bytes)
    limits = [f"{format_count(budget.gpus, 'GPU')} of {size}"]
    limits += [f"{budget.hours:g} h"] if budget.hours is not None else []
    limits += [f"{budget.joules_per_clip:g} J a clip"] if budget.joules_per_clip is not None else []
    return f"Did the run finish soundly, within the budget {budget.name} ({', '.join(limits)})?"


def _word(verdict: Verdict) -> str:
    return "PASS" if verdict.passed else "NOT YET" if verdict.is_waiting else "FAIL"


def _check(check: Check) -> str:
    kind, mark, said = {
        True: ("ok", "&#10003;", "passed"),
        False: ("bad", "&#10007;", "failed"),
        None: ("open", "&ndash;", "not judged"),
    }[check.passed]
    return (
        f'<li class="{kind}"><span class="mark" role="img" aria-label="{said}">{mark}</span>'
        f"<b>{escape(check.name)}</b> <span>{escape(check.text)}</span></li>"
    )


def _describe_length(figures: Figures, verdict: Verdict) -> str:
    info, begin, end = figures.run.info, figures.begin_unix_seconds, figures.end_unix_seconds
    texts = [f"{figures.span.last_step:,} of {info.total_steps:,}"]
    if begin is not None and end is not None and end > begin:
        starts = f" over {len(figures.run.parts)} starts" if len(figures.run.parts) > 1 else ""
        texts.append(f"{format_duration(end - begin)}{starts}")
    if verdict.state in ENDINGS:
        texts.append(ENDINGS[verdict.state])
    elif figures.outcome is not None:
        texts.append(f"{'finished' if verdict.state == FINISHED else 'stopped'} on {show_date(figures.outcome.unix_seconds)}")
    return ", ".join(texts)


def show_started(text: str) -> str:
    """A run's "2026-01-05T10:00:00+0100" for people, in this machine's zone; one without a zone
    as it is: "5 January 2026, 10:00"; another text unchanged."""
    match = _STARTED.fullmatch(text)
    try:
        when = datetime(*(int(part) for part in match.groups()[:5])) if match else None
        if when and match[6]:
            zone = timezone((-1 if match[6] == "-" else 1) * timedelta(hours=int(match[7]), minutes=int(match[8])))
            return show_date(when.replace(tzinfo=zone).timestamp())
    except (ValueError, OverflowError):
        when = None
    return _name_time(when) if when else text or "at an unknown time"


def show_date(unix_seconds: float) -> str:
    """Date and time in this machine's zone, with its name: "5 January 2026, 10:00 CET"."""
    try:
        when = datetime.fromtimestamp(unix_seconds).astimezone()
    except (ValueError, OverflowError, OSError):  # of a file that somebody else wrote
        return "an unknown date"
    return f"{_name_time(when)} {when.tzname()}"


def _name_time(when: datetime) -> str:
    return f"{when.day} {month_name[when.month]} {when.year}, {when.hour:02}:{when.minute:02}"

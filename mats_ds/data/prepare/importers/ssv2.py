"""Something-Something V2: JSON entries {id, template} (+ labels.json) -> ID.webm with the number of
the template.

The template's brackets are no part of its name in labels.json. test.json holds ids alone: its
labels come from test-answers.csv (`id;template`), given as --labels or lying beside; without it
they are -1. The answers can be the source too.
"""

from __future__ import annotations

import re
from pathlib import Path

from mats_ds.core.format import format_count
from mats_ds.data.prepare.importers.labels import ClassList, read_class_list
from mats_ds.data.prepare.importers.rows import MALFORMED, UNKNOWN_LABEL, Request, Rows
from mats_ds.data.prepare.importers.source import Source, open_source

ANSWER = re.compile(r"(\d+)\s*;\s*(\S.*)")


def fits_ssv2(source: Source) -> str | None:
    if source.entries is None:
        lines = source.lines[:100]
        return "its lines are `id;template`" if lines and all(ANSWER.fullmatch(line) for _, line in lines) else None
    entries = [entry for _, entry in source.entries[:100]]
    if not entries or not all(isinstance(entry, dict) and str(entry.get("id", "")).isdigit() for entry in entries):
        return None
    if all("template" in entry for entry in entries):
        return "its entries have id and template"
    return "its entries have an id and nothing else" if all(set(entry) == {"id"} for entry in entries) else None


def read_ssv2(request: Request) -> Rows:
    rows, source = Rows(), request.source
    answers_file, class_file = _find_companions(request)
    answers = _read_answers(open_source(answers_file), rows) if answers_file else {}
    if source.entries is not None:
        entries = [(source.where(number), entry) for number, entry in source.entries]
    else:
        entries = [(source.where(number), _parse_answer(line)) for number, line in source.lines]
    classes = None
    if class_file:
        classes = read_class_list(class_file)
        rows.classes = classes.names
        rows.notes.append(f"classes from {class_file.name}")
    elif answers or any("template" in entry for _, entry in entries if isinstance(entry, dict)):
        raise ValueError(f"no labels.json beside {source.path}, which numbers the classes: put it there or give it as --labels")
    if answers:
        rows.notes.append(f"labels from {answers_file.name}")
    num_unlabelled = 0
    for where, entry in entries:
        if not isinstance(entry, dict) or not str(entry.get("id", "")).isdigit():
            rows.refuse(where, MALFORMED, f"expected an entry with an id of digits, got {str(entry)[:120]}")
            continue
        video = str(entry["id"])
        template = entry.get("template", answers.get(video))
        label = _find_label(template, classes)
        if label is None:
            rows.refuse(where, UNKNOWN_LABEL, f"{video}: {template!r} is not in {class_file.name if class_file else 'no list'}")
            continue
        num_unlabelled += label < 0
        video_path = request.videos.find_named(video) if request.videos.known else f"{video}.webm"
        if video_path is None:
            rows.refuse_missing(where, request, f"{video}.webm")
        else:
            rows.add(where, video_path, label)
    if num_unlabelled:
        rows.notes.append(
            f"{format_count(num_unlabelled, 'entry')} without a template: label -1 (unknown); test-answers.csv would give theirs"
        )
    return rows


def _find_label(template: str | None, classes: ClassList | None) -> int | None:
    if template is None:
        return -1
    return classes.number_of(re.sub(r"[\[\]]", "", template)) if classes else None


def _find_companions(request: Request) -> tuple[Path | None, Path | None]:
    """The answers for a source without templates, and the class list: as given, else beside the
    source."""
    folder, given = request.source.folder, request.labels
    given_answers = given if given and fits_ssv2(open_source(given)) else None
    answers = given_answers
    entries = request.source.entries
    if answers is None and entries and not any(isinstance(entry, dict) and "template" in entry for _, entry in entries):
        answers = min(folder.glob("*test-answers.csv"), default=None)
    classes = given if given and not given_answers else min(folder.glob("*labels.json"), default=None)
    if classes is None and given_answers:
        classes = min(given_answers.parent.glob("*labels.json"), default=None)
    return answers, classes


def _read_answers(source: Source, rows: Rows) -> dict[str, str]:
    answers = {}
    for number, line in source.lines:
        entry = _parse_answer(line)
        if entry is None:
            rows.refuse(source.where(number), MALFORMED, f"expected `id;template`, got {line[:120]!r}")
        else:
            answers[entry["id"]] = entry["template"]
    return answers


def _parse_answer(line: str) -> dict[str, str] | None:
    match = ANSWER.fullmatch(line)
    return {"id": match[1], "template": match[2]} if match else None

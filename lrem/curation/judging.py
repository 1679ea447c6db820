"""How far a judge agrees with what is known. Pure; knows no judge."""

from collections.abc import Sequence

from lrem.curation.prompts import parse_grade


def agreement(judged: Sequence[bool], known: Sequence[bool]) -> dict[str, float | int]:
    """A judge's verdicts beside the known ones of the same pairs: counts, accuracy, precision, recall, Cohen's kappa.

    What cannot be said (no pair, or a judge who never accepts) is left out.

    >>> agreement([True, True, False, False], [True, False, False, False])
    {'pairs': 4, 'accepted': 2, 'relevant': 1, 'accuracy': 0.75, 'precision': 0.5, 'recall': 1.0, 'kappa': 0.5}
    """
    pairs = len(judged)
    both = sum(a and b for a, b in zip(judged, known, strict=True))
    accepted, relevant = sum(judged), sum(known)
    told: dict[str, float | int] = {"pairs": pairs, "accepted": accepted, "relevant": relevant}
    if not pairs:
        return told
    same = (pairs - accepted - relevant + 2 * both) / pairs
    told["accuracy"] = round(same, 4)
    if accepted:
        told["precision"] = round(both / accepted, 4)
    if relevant:
        told["recall"] = round(both / relevant, 4)
    chance = (accepted * relevant + (pairs - accepted) * (pairs - relevant)) / pairs**2
    if chance < 1:
        told["kappa"] = round((same - chance) / (1 - chance), 4)
    return told


def accepts(answer: str | None, least: int = 2) -> bool | None:
    """Whether a judge's written grade, 0 to 3, says relevant; None where there is no grade to read.

    >>> accepts("3"), accepts("Grade: 1"), accepts("who knows"), accepts(None)
    (True, False, None, None)
    """
    try:
        return None if answer is None else parse_grade(answer) >= least
    except ValueError:
        return None


def mean_share(verdicts: Sequence[Sequence[bool | None]], k: int) -> float:
    """Precision@k by a judge: accepted of the k first, a mean over queries; what has no verdict is not accepted.

    >>> mean_share([[True, None], [True, True]], 2)
    0.75
    """
    return round(sum(sum(map(bool, top[:k])) / k for top in verdicts) / max(1, len(verdicts)), 4)

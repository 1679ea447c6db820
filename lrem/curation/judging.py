"""How far a judge agrees with what is known. Pure; knows no judge."""

from collections.abc import Sequence


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

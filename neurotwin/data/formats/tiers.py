"""Tiers: the names that several layouts give to the parts of a recording, and what becomes of them."""

from collections.abc import Hashable, Sequence

__all__ = ["leaks", "split_of_tier", "tier_notes"]


def split_of_tier(tier: str) -> str:
    """The split that a tier stands for; empty where it stands for none.

    Examples
    --------
    >>> [split_of_tier(tier) for tier in ("train", "validation", "oracle", "live_test_bonus", "none")]
    ['train', 'val', 'val', 'test', '']
    """
    tier = tier.strip().lower()
    if "test" in tier:
        return "test"
    return {"train": "train", "training": "train", "val": "val", "validation": "val", "oracle": "val"}.get(tier, "")


def tier_notes(tiers: Sequence[str]) -> list[str]:
    """What a session's notes say about tiers that are no split, one sentence each.

    Bins without a split would be drawn for training or validation. A tier that stands for none was kept out of both, so
    readers make its bins not valid.
    """
    unknown = sorted({tier for tier in tiers if not split_of_tier(tier)})
    return [
        f"The bins of the {list(tiers).count(tier)} trials of the tier {tier!r} are not valid, because the tier stands "
        "for no split."
        for tier in unknown
    ]


def leaks(keys: Sequence[Hashable | None], splits: Sequence[str], what: str) -> list[str]:
    """What a session's notes say about stimuli that stand in several splits, one sentence a pair of splits.

    Parameters
    ----------
    keys
        What each trial showed; None where that is not known.
    splits
        The split of each trial.
    what
        The stimuli's name in the plural.

    Examples
    --------
    >>> leaks(["a", "b", "a"], ["train", "train", "test"], "videos")
    ['1 of the videos shown in test are shown in train as well, so predicting them is no test of new stimuli.']
    """
    shown = {split: {k for k, s in zip(keys, splits, strict=True) if s == split and k is not None} for split in splits}
    notes = []
    for earlier, later in (("train", "val"), ("train", "test"), ("val", "test")):
        both = len(shown.get(earlier, set()) & shown.get(later, set()))
        if both:
            notes.append(
                f"{both} of the {what} shown in {later} are shown in {earlier} as well, so predicting them is no test "
                "of new stimuli."
            )
    return notes

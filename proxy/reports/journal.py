"""The metrics of the journal and of what is learnt from it: their names, for those who only list them."""

from __future__ import annotations

JOURNAL_METRICS = {
    "understudy_risk": "Risk of each component failing one to eleven minutes from now, as far as that has been learnt",
    "understudy_prediction_base": "The same by how often it fails at all, for comparison",
    "understudy_prediction_brier": "Brier score of the risk over about a month: 0 is perfect",
    "understudy_prediction_skill": "By how much that is better than the base rate's: above 0 it knows something",
    "understudy_prediction_precision": "Share of warnings (risk above 0.7) after which the component did fail in time",
    "understudy_prediction_recall": "Share of failures that were warned of a minute before",
    "understudy_prediction_positives_total": "Failures that there was time to foresee",
    "understudy_prediction_trusted": "1 where a risk may be warned of: ten failures met, and skill above 0",
    "understudy_prediction_reliability": "How often what was said came about, by what was said in five bins",
    "understudy_journal_bytes": "What the journal takes on the disk",
    "understudy_journal_events_total": "Events taken into the journal, by family",
    "understudy_journal_dropped_total": "Events that could not be written into the journal",
}

"""What a run prints: results as tables and sentences, a file for each kind.

Knows rich and the wording. Computes nothing.
"""

from refusal_lens.stages.terminal.directions import (
    show_attribution,
    show_directions,
    show_imported,
    show_unembedding,
)
from refusal_lens.stages.terminal.experiments import (
    show_answers,
    show_causal,
    show_causal_choice,
    show_causal_outlook,
    show_fault,
    show_interventions,
    show_labels_of,
)
from refusal_lens.stages.terminal.judging import show_labels, show_two_directions, show_two_judges
from refusal_lens.stages.terminal.prompts import (
    show_groups,
    show_outlook,
    show_positions,
    show_prompts,
    show_rates,
    show_refusal,
    show_sinks,
)
from refusal_lens.stages.terminal.runs import (
    show_comparison,
    show_kept,
    show_paths,
    show_report,
)
from refusal_lens.stages.terminal.scores import (
    show_best,
    show_checklist,
    show_layers,
    show_plan,
    show_replies,
)

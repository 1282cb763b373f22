"""What a reader is told about each figure: a title and one sentence.

Knows the figures by name. Draws none.
"""

CAPTIONS = {
    "projection_histogram": (
        "Projection histogram",
        "Every prompt along the direction of one place, projected on a direction that it did not "
        "help to fit; crosses are misread prompts.",
    ),
    "ridgeline": (
        "All layers at once",
        "Both classes along the direction of each layer: where they part, the direction begins.",
    ),
    "layer_profile": (
        "Layer profile",
        "Scores over the layers: solid lines are held out, dotted ones in sample, and the room "
        "between them is optimism.",
    ),
    "score_heatmap": (
        "Hook points and positions",
        "The score of every place: look for a region, not for a single bright cell.",
    ),
    "place_heatmap": (
        "All places",
        "Separation of every hook point and position, on prompts that its direction was not "
        "fitted to.",
    ),
    "cosine_heatmap": (
        "Cosines between layers",
        "How alike the directions of the layers are, beside the most that noise would leave of "
        "two directions that are the same.",
    ),
    "transfer_matrix": (
        "Transfer between categories",
        "AUROC of each category along the direction of another; never on prompts that it was "
        "fitted to.",
    ),
    "activation_plane": (
        "Activations in a plane",
        "The best direction across, the first principal component of all the rest upwards; both "
        "are fitted to the prompts shown.",
    ),
    "category_breakdown": (
        "Categories",
        "How each category lies along the best direction, and how much of it is called harmful.",
    ),
    "misread_prompts": (
        "Misread prompts",
        "The prompts on the wrong side of the threshold, and how far they are beyond it.",
    ),
    "stability": (
        "Stability",
        "How alike the directions of other draws of prompts are: near 1 they hardly turn.",
    ),
    "learning_curve": (
        "Learning curve",
        "By how many degrees the direction turns when it is fitted to so many prompts.",
    ),
    "nested_choice": (
        "Nested choice",
        "Which place was chosen on a part of the prompts, and how it did on the others.",
    ),
    "confounds": (
        "Confounds",
        "How well length, punctuation and words alone tell the classes apart.",
    ),
    "method_comparison": (
        "Ways to fit",
        "Other ways to fit a direction, over the layers, on the same held-out prompts.",
    ),
    "direction_components": (
        "Components of the direction",
        "Its largest coordinates: where a single one holds most of the length, clip lower.",
    ),
    "coordinate_shares": (
        "Shares of the coordinates",
        "How much of each direction's squared length its largest coordinates hold.",
    ),
    "clip_sweep": ("Clipping", "What clipping the direction's largest components does to it."),
    "direction_cosines": (
        "Cosines between directions",
        "How alike two directions are, beside the most that so few prompts allow.",
    ),
    "transfer": ("Transfer", "Fitted on one set of prompts, tested on another."),
    "causal_scores": (
        "Causal scores",
        "What ablating and adding each direction does to refusal, with the paper's thresholds.",
    ),
    "dose_response": (
        "Dose and response",
        "Refusal over the strength of the intervention, beside random and permuted directions.",
    ),
    "head_attribution": (
        "What writes the direction",
        "How much each head and MLP adds to the class difference along the direction.",
    ),
    "unembedding": (
        "Through the unembedding",
        "The tokens that the direction speaks for and against.",
    ),
    "prompt_tokens": (
        "Tokens of a prompt",
        "Each token coloured by its projection: where in the prompt the direction appears.",
    ),
}


def title_of(name: str) -> str:
    """Return a figure's title; one that is not listed is called by its name."""
    return CAPTIONS[name][0] if name in CAPTIONS else name.replace("_", " ").capitalize()


def caption_of(name: str) -> str:
    """Return a figure's sentence; none for one that is not listed."""
    return CAPTIONS[name][1] if name in CAPTIONS else ""

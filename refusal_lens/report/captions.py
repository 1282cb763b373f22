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
        "Scores over the layers; solid lines are held out, dotted ones in sample, and the room "
        "between them is optimism.",
    ),
    "heatmap": (
        "Hook points and positions",
        "The score of every place: look for a region, not for a single bright cell.",
    ),
    "layer_cosines": (
        "Directions between layers",
        "How alike the directions of two layers are, beside the most that so few prompts allow.",
    ),
    "learning_curve": (
        "Learning curve",
        "By how many degrees the direction turns when it is fitted to fewer prompts.",
    ),
    "clip_sweep": ("Clipping", "What clipping the direction's largest components does to it."),
    "components": (
        "Components of the direction",
        "Its largest coordinates: where a single one holds most of the length, clip it.",
    ),
    "causal_scores": (
        "Causal scores",
        "What ablating and adding each direction does to refusal, with the paper's thresholds.",
    ),
    "dose_response": (
        "Dose and response",
        "Refusal over the strength of the intervention, beside random and permuted directions.",
    ),
    "attribution": (
        "Who writes the direction",
        "Contribution of each component to the class difference along the direction.",
    ),
    "head_attribution": (
        "Which heads write the direction",
        "Contribution of each attention head to the class difference along the direction.",
    ),
    "prompt_tokens": (
        "Tokens of a prompt",
        "Each token coloured by its projection: where in the prompt the direction appears.",
    ),
    "activation_map": (
        "Activations in two dimensions",
        "The direction against the first principal component of all the rest.",
    ),
    "categories": ("Categories", "How each category projects on the direction."),
    "misread": ("Misread prompts", "The prompts on the wrong side of the threshold, and how far."),
    "transfer": ("Transfer", "Fitted on one set of prompts (rows), tested on another (columns)."),
    "methods": ("Ways to fit", "The scores of other ways to fit a direction at the same place."),
    "nulls": ("Against chance", "The scores beside those of shuffled labels."),
}


def title_of(name: str) -> str:
    """Return a figure's title; one that is not listed is called by its name."""
    return CAPTIONS[name][0] if name in CAPTIONS else name.replace("_", " ").capitalize()


def caption_of(name: str) -> str:
    """Return a figure's sentence; none for one that is not listed."""
    return CAPTIONS[name][1] if name in CAPTIONS else ""

"""What the demo trains and measures: every number of it."""

from __future__ import annotations

from dataclasses import dataclass

EXTRA = 'pip install "isobasin[demo]"'


@dataclass(frozen=True)
class Recipe:
    """How the demo's models are made (arXiv 2606.17830, section 5: first attention layer, three seeds).

    The base model is a ViT of 2 layers (width 64, 4 heads of 16, MLP 128, no dropout) on 8 x 8 images in patches of
    2 x 2, trained on 70 % of scikit-learn's digits, scaled to [-1, 1]. Each model is the base with its first
    attention layer drawn anew (as transformers initialises it) and trained, and everything else frozen. AdamW,
    batches of 64, cosine decay to zero. The new layer gets a larger rate than the base, at whose rate its loss is
    still well above the base's in the end; the seeds are the first ones.

    What aligning leaves of a barrier depends on the models. Five other recipes (base seed 0 or 1, 600 to 2000 steps,
    either rate) had naive barriers of 1.3 to 4.2, of which 4 to 84 % were left, 23 % in the median pair.

    Attributes:
        base_steps: Of training the base model.
        base_rate: Its first learning rate.
        tuning_steps: Of training a new first attention layer.
        tuning_rate: Its first learning rate.
        batch: Images of one step.
        split_seed: Of the split into training and test images.
        base_seed: Of the base model's weights and batches.
        seeds: One model for each: of its new layer and batches.
        points: Of the line between two models.
        scramble_seed: Of the random group element.
        condition: Condition number of each of that element's maps.
    """

    base_steps: int = 600
    base_rate: float = 1e-3
    tuning_steps: int = 600
    tuning_rate: float = 3e-3
    batch: int = 64
    split_seed: int = 0
    base_seed: int = 0
    seeds: tuple[int, int, int] = (1, 2, 3)
    points: int = 25
    scramble_seed: int = 0
    condition: float = 100.0


QUICK = Recipe(base_steps=12, tuning_steps=6, points=5)
"""For trying the demo out: nothing is really trained, so its barriers mean nothing."""

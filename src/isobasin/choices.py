"""What a user chooses from, each once: the command line, experiments' files, the library and the docs read it here.

Nothing heavy is imported, so that `--help` costs nothing. `python -m isobasin.choices` prints docs/choices.md.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from isobasin.errors import ChoiceError
from isobasin.text import near

if TYPE_CHECKING:
    import torch


GENERATED = "generated"
"""The name of data that the models write themselves."""


class Choice(StrEnum):
    """Names to choose from. Every member says what it means in `meaning`; `help` of the class lists them.

    Raises:
        ChoiceError: From the class, called with a name that isn't there.
    """

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Choice:
        """A member: its name, as users write it, and what it means."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    # In a message it is the name that the user gave, as any other text.
    __repr__ = str.__repr__

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__doc__ = "\n* ".join([f"{cls.__doc__}\n", *cls.listed()])

    @classmethod
    def _missing_(cls, value: object) -> None:
        what = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in cls.__name__).strip()
        raise ChoiceError(f"{what} {value!r}: {near(str(value), cls)}")

    @classmethod
    def what(cls) -> str:
        """What is chosen, in one line."""
        return (cls.__doc__ or "").partition("\n")[0]

    @classmethod
    def listed(cls) -> list[str]:
        """Every member and what it means."""
        return [f"{member}: {member.meaning}." for member in cls]


class Method(Choice):
    """How each head is brought onto its partner."""

    gauss_newton = "gauss-newton", "damped Newton steps from two starts on GL(n), the exact root on planes"
    paper = "paper", "as published, gradient descent from the orthogonal start, Brent on planes"
    balanced = "balanced", "the nearer start of gauss-newton, in closed form and quicker"
    orthogonal = "orthogonal", "the start of paper alone: the nearest orthogonal map or rotation"
    heads = "heads", "they are permuted, and nothing else is moved"


class Way(Choice):
    """How B is moved before the line is drawn."""

    none = "none", "not at all, which all others are compared with"
    vars().update({method.name: (method.value, method.meaning) for method in Method})


WAYS = (Way.none, *map(Way, (Method.heads, Method.paper, Method.gauss_newton)))
"""The ways of one figure: B as it is, its heads permuted, the published matching, and ours."""


class HeadCost(Choice):
    """What two heads are compared by; M is Q K^T and N is V O^T."""

    rotary = "rotary", "the complete invariant: plane by plane where positions rotate, else as frobenius"
    frobenius = "frobenius", "|M - M'|² + |N - N'|²"
    centred = "centred", "the paper's, with M (I - 11^T/d) for M"
    spectral = "spectral", "the squared largest singular values of M - M' and N - N'"
    cosine = "cosine", "2 - cos(M, M') - cos(N, N'), blind to how large a circuit is"


class Scope(Choice):
    """What of a model is moved."""

    attention = "attention", "the heads of every attention block"
    block = "block", "units of feed-forward blocks too, permuted, and scaled where the activation lets scales pass"
    model = "model", "the residual stream as well, for models that were trained apart"

    @property
    def feedforward(self) -> bool:
        """Whether feed-forward blocks are moved as well as attention."""
        return self is not Scope.attention


class Objective(Choice):
    """What is brought near."""

    weights = "weights", "the weights themselves, |A - B|²"
    activations = "activations", "what readers make of the data's inputs, E |x (A - B)|², and writers as their weights"


class Rounding(Choice):
    """What weights are rounded to, each to the nearest: the projections of all blocks."""

    rtn2 = "rtn2", "integers from -2 to 1, times a scale for every 32 inputs of an output, or as --group says"
    rtn3 = "rtn3", "integers from -4 to 3, times a scale for every output, or as --group says"
    rtn4 = "rtn4", "integers from -8 to 7, likewise"
    mxfp4 = "mxfp4", "E2M1 numbers, times a power of two for every 32 inputs"
    nvfp4 = "nvfp4", "E2M1 numbers, times an E4M3 scale for every 16 inputs and one scale for all"


class Costs(Choice):
    """What rounding costs a model."""

    weights = "weights", "the error of each weight beside its size, seen from the gauge as trained"
    layers = "layers", "the error of each layer's outputs on the data's inputs, beside their size"
    predictions = "predictions", "KL(p | q) of what the model predicts on the data and what it predicts once rounded"


class Space(Choice):
    """What a merge averages."""

    weights = "weights", "every tensor"
    circuit = "circuit", "Q K^T and V O^T of every head, cut to its width, and all other tensors as in weights"


class MergeMethod(Choice):
    """How models are combined once they are aligned."""

    mean = "mean", "their weighted mean"
    slerp = "slerp", "by mergekit: the point of the arc between two models, tensor by tensor"
    task_arithmetic = "task-arithmetic", "by mergekit: A and the weighted sum of what the others are beyond it"
    ties = "ties", "by mergekit: likewise, the largest changes alone (--density), where they agree in sign"

    @property
    def of_tasks(self) -> bool:
        """Whether the first model is what the others come from, and has no weight itself."""
        return self in (MergeMethod.task_arithmetic, MergeMethod.ties)


class Readout(Choice):
    """Whose head a merged body gets, where the models have other heads."""

    reference = "reference", "the first model's"
    own = "own", "of two models the other one's, whose form, configuration and gauge the result then has"


class Device(Choice):
    """Where the work is done."""

    auto = "auto", "the first CUDA device where there is one that works, or else the processor"
    cpu = "cpu", "the processor"
    cuda = "cuda", "the first CUDA device; cuda:1 is the second one, and so on"


class Dtype(Choice):
    """Type of the weights that are written."""

    keep = "keep", "each tensor's own"
    float64 = "float64", "double precision"
    float32 = "float32", "single precision"
    float16 = "float16", "half precision"
    bfloat16 = "bfloat16", "half as long as float32, with its range"

    def resolve(self) -> torch.dtype | None:
        """The torch type; None for `keep`."""
        import torch

        return None if self is Dtype.keep else getattr(torch, self.value)


class Targets(Choice):
    """What a line is learned from."""

    labels = "labels", "the data's, by the task's loss"
    ends = "ends", "what both ends predict, mixed as their weights are: KL((1 - t) p_A + t p_B | p_t)"


class TaskKind(Choice):
    """What the models predict."""

    image_classification = "image-classification", "the class of an image"
    text_classification = "text-classification", "the class of a text, or of two"
    causal_lm = "causal-lm", "every token from those before it"
    masked_lm = "masked-lm", "tokens that are masked"

    @property
    def classifies(self) -> bool:
        """One label for an example, rather than one for every token."""
        return self in (TaskKind.image_classification, TaskKind.text_classification)


class Trained(Choice):
    """Which family an experiment trains."""

    vit = "vit", "images, and with rotary positions a type of isobasin's own"
    bert = "bert", "texts, and with rotary positions RoFormer"
    gpt2 = "gpt2", "causal, and with rotary positions GPT-NeoX"
    llama = "llama", "causal, with rotary positions only"


class Positions(Choice):
    """How a trained model knows where a token stands."""

    absolute = "absolute", "a vector added to the token's"
    rotary = "rotary", "queries and keys are rotated, plane by plane"


class Vocabulary(Choice):
    """Which tokens a trained tokenizer has."""

    characters = "characters", "one for every character of the texts"
    bpe = "bpe", "pairs of bytes that are frequent, merged again and again"


class Redrawn(Choice):
    """What an experiment draws anew before fine-tuning."""

    first_attention = "first-attention", "attention of the first layer"
    all_attention = "all-attention", "attention of every layer"
    first_layer = "first-layer", "the whole first layer"
    entire_model = "entire-model", "everything"

    @property
    def feedforward(self) -> bool:
        """Whether feed-forward blocks are drawn anew as well, so that they have to be matched."""
        return self in (Redrawn.first_layer, Redrawn.entire_model)


class Runner(Choice):
    """What runs the cells of an experiment, or the matching of two models' blocks."""

    local = "local", "this machine"
    ray = "ray", "a cluster of machines that share a file system"


_PAGE = """# Choices

Every name that may be chosen, for the command line, for experiments' files and from Python, where
`isobasin.choices` has them. `make pages` writes this page.
"""


def page() -> str:
    """The page docs/choices.md."""
    lines = [_PAGE]
    for choices in Choice.__subclasses__():
        if choices.__module__ != Choice.__module__:
            continue  # what is found out, such as a defect, isn't chosen
        rows = (f"| `{member}` | {member.meaning.replace('|', '&#124;')} |" for member in choices)
        lines += [f"## {choices.__name__}\n\n{choices.what()}\n", "| name | what it means |", "|---|---|", *rows, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")

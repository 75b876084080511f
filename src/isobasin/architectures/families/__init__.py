"""One file per family of models; each states facts only, and is listed here once."""

from isobasin.architectures.families import (
    bert,
    deit,
    distilbert,
    gpt2,
    gpt_neox,
    gptj,
    isobasin_bert,
    isobasin_gpt2,
    isobasin_vit,
    llama,
    mistral,
    opt,
    qwen2,
    roberta,
    roformer,
    vit,
)

FAMILIES = tuple(
    module.FAMILY
    for module in (
        bert,
        deit,
        distilbert,
        gpt2,
        gpt_neox,
        gptj,
        isobasin_bert,
        isobasin_gpt2,
        isobasin_vit,
        llama,
        mistral,
        opt,
        qwen2,
        roberta,
        roformer,
        vit,
    )
)

"""One file per family of models; each states facts only, and is listed here once."""

from isobasin.architectures.families import (
    albert,
    bert,
    deit,
    dinov2,
    distilbert,
    electra,
    gpt2,
    gpt_bigcode,
    gpt_neo,
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
    xlm_roberta,
)

FAMILIES = tuple(
    module.FAMILY
    for module in (
        albert,
        bert,
        deit,
        dinov2,
        distilbert,
        electra,
        gpt2,
        gpt_bigcode,
        gpt_neo,
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
        xlm_roberta,
    )
)

"""The prompts of a request: their texts, and their tokens for every text encoder. Does not know the encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from ..errors import InputError
from ..images.arrays import as_list
from ..plan.plan import Plan
from ..text.foreign_syntax import syntax_notes
from ..text.prompt_weights import parse_weighted_prompt
from ..text.tokenizer import ClipTokenizer, Tokens
from .conditioning import PrecomputedStates
from .regions.regions import Regions
from .request import Request

Tokenizers = Mapping[str, ClipTokenizer]
TokensByEncoder = Mapping[str, Tokens]
SECOND = "text_encoder_2"  # of SDXL, where `prompt_2` goes

MAX_CHUNKS = 32  # of a prompt: 2400 tokens. Attention over more takes gigabytes


class Texts(TypedDict):
    """The fields of a `ResolvedRequest` with texts: a prompt and a negative prompt for each image."""

    prompts: tuple[str, ...]  # empty texts where the caller gives the states of the text encoders
    negative_prompts: tuple[str | None, ...]  # None stands for zeros
    prompts_2: tuple[str, ...]  # of the second encoder
    negative_prompts_2: tuple[str | None, ...]


def _texts_from(
    prompts: Sequence[str], negatives: Sequence[str | None], prompts_2: Sequence[str], negatives_2: Sequence[str | None]
) -> Texts:
    return Texts(
        prompts=tuple(prompts),
        negative_prompts=tuple(negatives),
        prompts_2=tuple(prompts_2),
        negative_prompts_2=tuple(negatives_2),
    )


def repeated(texts: Texts, each: int) -> Texts:
    """Return the texts of `each` images for each prompt."""
    return _texts_from(
        [text for text in texts["prompts"] for _ in range(each)],
        [text for text in texts["negative_prompts"] for _ in range(each)],
        [text for text in texts["prompts_2"] for _ in range(each)],
        [text for text in texts["negative_prompts_2"] for _ in range(each)],
    )


def _of_encoder(texts: Texts, name: str, regions: Regions | None, *, guided: bool) -> list[str]:
    """Return the N texts of an encoder: under guidance the negative prompts, those of regions, and the prompts."""
    negatives = texts["negative_prompts_2" if name == SECOND else "negative_prompts"]
    return [
        *((text or "" for text in negatives) if guided else ()),
        *(text for text in (regions.prompts if regions else ()) for _ in negatives),
        *texts["prompts_2" if name == SECOND else "prompts"],
    ]


def tokenizers_of(plan: Plan) -> dict[str, ClipTokenizer]:
    """Return the tokenizer of each text encoder."""
    lengths = {name: int(plan.components[name].inputs[0].dims[1]) for name in plan.tokenizers}
    return {name: ClipTokenizer(folder, lengths[name]) for name, folder in plan.tokenizers.items()}


def texts_of(request: Request, plan: Plan, precomputed: PrecomputedStates) -> Texts:
    """Return the texts of a request; empty ones in place of states that the caller gives. Raises `InputError`."""
    for name in ("prompt_2", "negative_prompt_2"):
        if getattr(request, name) is not None and len(dict(plan.prompting.states)) != 2:
            raise InputError(f"{name} needs a model with two text encoders, such as SDXL.", argument=name)
    absent: list[str | None] = [None]
    if not plan.prompting.states:
        if request.prompt not in (None, "") or request.negative_prompt not in (None, ""):
            kind = "makes videos of image=" if plan.takes("video") else "is unconditional"
            kind = "shows variations of image=" if plan.takes("vision") else kind
            raise InputError(
                f"this model {kind} and takes no prompt. Use num_images= to generate several images.",
                argument="prompt",
            )
        several = len(as_list(request.image)) if plan.sees else 1
        absent = absent if plan.prompting.zero_negative else [""]
        empty, absent = [""] * several, absent * several
        return _texts_from(empty, absent, empty, absent)
    prompts = [""] * len(precomputed.states) if precomputed.states is not None else _texts("prompt", request.prompt)
    count = len(prompts)
    prompts_2 = _one_for_each("prompt_2", request.prompt_2, prompts)
    if precomputed.negative_states is not None:
        return _texts_from(prompts, [""] * count, prompts_2, [""] * count)
    if request.negative_prompt is None and plan.prompting.zero_negative:
        return _texts_from(prompts, absent * count, prompts_2, absent * count)
    negatives = _one_for_each("negative_prompt", request.negative_prompt, [""] * count)
    negatives_2 = _one_for_each("negative_prompt_2", request.negative_prompt_2, negatives)
    return _texts_from(prompts, negatives, prompts_2, negatives_2)


def _one_for_each(name: str, value: str | Sequence[str] | None, default: Sequence[str]) -> Sequence[str]:
    """Return a text for each prompt. As in diffusers, an empty one stands for the default."""
    if not value and value != []:
        return default
    texts = _texts(name, value)
    if len(texts) not in (1, len(default)):
        raise InputError(
            f"pass one {name}, or one for each of {len(default)} prompts; got {len(texts)}.",
            argument=name,
            got=len(texts),
        )
    texts = texts * len(default) if len(texts) == 1 else texts
    return [text or other for text, other in zip(texts, default, strict=True)]


def _texts(name: str, value: str | Sequence[str] | None) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else None
    if not texts or not all(isinstance(t, str) for t in texts):
        raise InputError(
            f"{name} must be text, or a list of texts that is not empty; got {value!r:.80}.", argument=name, got=value
        )
    # Terminal bytes that are not UTF-8 arrive as lone surrogates, which no file can store: they become "?".
    return [t.encode("utf-8", "replace").decode("utf-8") for t in texts]


def tokenize(
    plan: Plan,
    tokenizers: Tokenizers,
    texts: Texts,
    precomputed: PrecomputedStates,
    *,
    guided: bool,
    notes: list[str],
    regions: Regions | None = None,
) -> TokensByEncoder:
    """Tokenize the prompts for every text encoder: under guidance the negative ones first, then those of regions.

    A missing negative prompt gets the tokens of the empty one. All encoders get the same number of chunks, so that
    their states can be joined, also with the states that the caller gives. Append what the report says about the
    prompts to `notes`.  # ids [N, chunks, T]

    Raises:
        InputError: a text has an invalid weight, or is too long.
    """
    if not plan.prompting.states:
        return {}
    negatives = dict.fromkeys(filter(None, [*texts["negative_prompts"], *texts["negative_prompts_2"]]))
    of_regions = regions.prompts if regions else ()
    for argument, texts_of_it in {"negative_prompt": negatives, "region_prompts": of_regions}.items():
        for text in texts_of_it:
            try:
                parse_weighted_prompt(text)  # text without effect is checked as well
            except InputError as error:
                error.argument = argument
                raise
    states = next(b for b in plan.components["unet"].inputs if b.name == "encoder_hidden_states")
    limit = 1 if isinstance(states.dims[1], int) else MAX_CHUNKS  # a network may accept one chunk only
    fixed = precomputed.chunks(next(iter(tokenizers.values())).length, texts["negative_prompts"], guided=guided)
    tokens = {}
    for name, tokenizer in tokenizers.items():
        rows = _of_encoder(texts, name, regions, guided=guided)
        unique = {text: i for i, text in enumerate(dict.fromkeys(rows))}
        tokens[name] = tokenizer(list(unique), fixed or limit).of([unique[text] for text in rows])
    chunks = fixed or max(t.ids.shape[1] for t in tokens.values())
    tokens = {name: t.with_chunks(chunks, tokenizers[name].empty) for name, t in tokens.items()}
    notes += syntax_notes(list(dict.fromkeys([*texts["prompts"], *texts["prompts_2"], *of_regions, *negatives])))
    notes += _left_out(tokens)
    if not guided and negatives:
        notes.append("the negative prompt has no effect: it needs guidance_scale > 1")
    return tokens


def tokenize_with(
    plan: Plan,
    tokenizers: Tokenizers,
    texts: Texts,
    precomputed: PrecomputedStates,
    *,
    style_prompt: str | None,
    guided: bool,
    notes: list[str],
    regions: Regions | None,
) -> tuple[TokensByEncoder, TokensByEncoder]:
    """Tokenize as `tokenize`, together with the prompt of a style's image, which gets as many chunks.

    Returns:
        The tokens of the prompts, and those of `style_prompt` with the first negative prompt; empty without it.
    """
    if style_prompt is None:
        return tokenize(plan, tokenizers, texts, precomputed, guided=guided, notes=notes, regions=regions), {}
    joined = _texts_from(
        [*texts["prompts"], style_prompt],
        [*texts["negative_prompts"], texts["negative_prompts"][0]],
        [*texts["prompts_2"], style_prompt],
        [*texts["negative_prompts_2"], texts["negative_prompts_2"][0]],
    )
    tokens, count = tokenize(plan, tokenizers, joined, precomputed, guided=guided, notes=notes), len(joined["prompts"])
    rows = range(count * (2 if guided else 1))
    own = [row for row in rows if row % count != count - 1]
    style = [row for row in rows if row % count == count - 1]
    return {name: t.of(own) for name, t in tokens.items()}, {name: t.of(style) for name, t in tokens.items()}


def _left_out(tokens: TokensByEncoder) -> Iterator[str]:
    left_out = dict.fromkeys(
        (t.ids.shape[1] * (t.ids.shape[2] - 2), text) for t in tokens.values() for text in t.dropped if text
    )
    for length, text in left_out:
        short = repr(text)
        if len(text) > 200:
            short = f"{text[:150]!r} ... {text[-30:]!r} ({len(text.split())} words)"
        yield f"the prompt is too long for {length} tokens; left out: {short}"

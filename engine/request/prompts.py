"""The prompts of a request: their texts, and their tokens for every text encoder. Does not know the encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..errors import InputError
from ..plan.plan import Plan
from ..text.foreign_syntax import syntax_notes
from ..text.prompt_weights import parse_weighted_prompt
from ..text.tokenizer import ClipTokenizer, Tokens
from .request import Request

Tokenizers = Mapping[str, ClipTokenizer]
TokensByEncoder = Mapping[str, Tokens]

MAX_CHUNKS = 32  # of a prompt: 2400 tokens. Attention over more takes gigabytes


def tokenizers_of(plan: Plan) -> dict[str, ClipTokenizer]:
    """Return the tokenizer of each text encoder."""
    lengths = {name: int(plan.components[name].inputs[0].dims[1]) for name in plan.tokenizers}
    return {name: ClipTokenizer(folder, lengths[name]) for name, folder in plan.tokenizers.items()}


def texts_of(request: Request, plan: Plan) -> tuple[list[str], Sequence[str | None]]:
    """Return the prompts, and a negative prompt for each; None stands for zeros. Raises `InputError`."""
    if not plan.prompting.states:
        if request.prompt not in (None, "") or request.negative_prompt not in (None, ""):
            raise InputError(
                "this model is unconditional and takes no prompt. Use num_images= to generate several images.",
                argument="prompt",
            )
        return [""], [None if plan.prompting.zero_negative else ""]
    prompts = _texts("prompt", request.prompt)
    if request.negative_prompt is None and plan.prompting.zero_negative:
        return prompts, [None] * len(prompts)
    texts = _texts("negative_prompt", request.negative_prompt or "")
    if len(texts) not in (1, len(prompts)):
        raise InputError(
            f"pass one negative_prompt, or one for each of {len(prompts)} prompts; got {len(texts)}.",
            argument="negative_prompt",
            got=len(texts),
        )
    return prompts, texts * len(prompts) if len(texts) == 1 else texts


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
    prompts: Sequence[str],
    negatives: Sequence[str | None],
    *,
    guided: bool,
    notes: list[str],
) -> TokensByEncoder:
    """Tokenize the prompts for every text encoder, under guidance the negative prompts first.

    A missing negative prompt gets the tokens of the empty one. All encoders get the same number of chunks, so that
    their states can be joined. Append what the report says about the prompts to `notes`.  # ids [N, chunks, T]

    Raises:
        InputError: a text has an invalid weight, or is too long.
    """
    if not plan.prompting.states:
        return {}
    for text in dict.fromkeys(filter(None, negatives)):
        try:
            parse_weighted_prompt(text)  # text without effect is checked as well
        except InputError as error:
            error.argument = "negative_prompt"
            raise
    texts = [*((text or "" for text in negatives) if guided else ()), *prompts]
    unique = list(dict.fromkeys(texts))
    rows = {text: i for i, text in enumerate(unique)}
    states = next(b for b in plan.components["unet"].inputs if b.name == "encoder_hidden_states")
    limit = 1 if isinstance(states.dims[1], int) else MAX_CHUNKS  # a network may accept one chunk only
    tokens = {
        name: tokenizer(unique, limit).of([rows[text] for text in texts]) for name, tokenizer in tokenizers.items()
    }
    chunks = max(t.ids.shape[1] for t in tokens.values())
    tokens = {name: t.with_chunks(chunks, tokenizers[name].empty) for name, t in tokens.items()}
    notes += syntax_notes([*prompts, *filter(None, negatives)])
    notes += _left_out(tokens)
    if not guided and any(negatives):
        notes.append("the negative prompt has no effect: it needs guidance_scale > 1")
    return tokens


def _left_out(tokens: TokensByEncoder) -> Iterator[str]:
    left_out = dict.fromkeys(
        (t.ids.shape[1] * (t.ids.shape[2] - 2), text) for t in tokens.values() for text in t.dropped if text
    )
    for length, text in left_out:
        short = repr(text)
        if len(text) > 200:
            short = f"{text[:150]!r} ... {text[-30:]!r} ({len(text.split())} words)"
        yield f"the prompt is too long for {length} tokens; left out: {short}"

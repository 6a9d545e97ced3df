"""What a decoder is asked: free continuation, and tasks where copying is natural.

Both come from held-out documents and are cut at token positions, inside a document.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lib.kit.checks import count, need
from lib.language.corpora import Corpus
from lib.language.tokens import EOS, Tokenizer

NEW_NAME = "given"  # what a renamed argument is called
WORDS = 8  # of a passage's repetition that a prompt already holds
AGAIN = "The same passage once more:"


@dataclass(frozen=True)
class Prompt:
    """A prompt and what the document, or the task, says should follow.

    tokens: of the prompt; reference: tokens that follow; document: its name.
    """

    tokens: list[int]
    reference: list[int]
    document: str


def prompts(
    corpus: Corpus,
    tokenizer: Tokenizer,
    number: int,
    length: int = 192,
    *,
    follow: int = 128,
    seed: int = 0,
    part: str = "held_out",
) -> list[Prompt]:
    """Windows of documents, each document once before any comes again.

    number: of prompts; length: tokens of each; follow: tokens of its document that come
    after; seed: of places; part: of the corpus. Raises ValueError where no document is
    long enough.
    """
    for name, size in {"number": number, "length": length, "follow": follow}.items():
        count(name, size)
    rng = np.random.default_rng(seed)
    texts = [(d.name, [EOS, *tokenizer.encode(d.text)]) for d in corpus.part(part)]
    long = [(n, tokens) for n, tokens in texts if len(tokens) >= length + follow]
    need(
        len(long) > 0,
        f"No document of {corpus.name} ({part}) has {length + follow} tokens; ask for "
        "a shorter length or follow.",
    )
    found, turn = [], rng.permutation(len(long))
    for k in range(number):
        name, tokens = long[turn[k % len(long)]]
        begin = int(rng.integers(0, len(tokens) - length - follow + 1))
        end = begin + length
        found.append(Prompt(tokens[begin:end], tokens[end : end + follow], name))
    return found


def copy_prompts(
    corpus: Corpus,
    tokenizer: Tokenizer,
    number: int,
    *,
    least: int = 64,
    most: int = 256,
    seed: int = 0,
    part: str = "held_out",
) -> list[Prompt]:
    """Tasks whose answer is nearly their own text: "edit this function".

    Of a Python corpus: a function, a comment that asks for one argument to be renamed,
    and the first line of the answer. Of prose: a paragraph, a request to repeat it, and
    its first words. number: of prompts; least, most: tokens of what is to be repeated;
    seed: of the choice; part: of the corpus. Raises ValueError where too few fit.
    """
    for name, size in {"number": number, "least": least, "most": most}.items():
        count(name, size)
    source = functions if corpus.kind == "python" else paragraphs
    tasks = _tasks(corpus, source, part, np.random.default_rng(seed))
    found = []
    for name, question, answer in tasks:
        # One text, encoded as one: the cut is where the answer's tokens begin.
        given, rest = tokenizer.encode(question), tokenizer.encode(answer)
        if least <= len(rest) <= most:
            found.append(Prompt([EOS, *given], rest, name))
        if len(found) == number:
            return found
    raise ValueError(
        f"{number} copying prompts of {least} to {most} tokens were asked for; "
        f"{corpus.name} ({part}) has {len(found)}. Ask for fewer, or widen the range."
    )


def _tasks(
    corpus: Corpus, source: Callable, part: str, rng: np.random.Generator
) -> Iterator[tuple[str, str, str]]:
    """Document, question and answer, the documents taking turns."""
    documents = corpus.part(part)
    queues = []
    for k in rng.permutation(len(documents)):
        tasks = source(documents[k].text)
        order = rng.permutation(len(tasks))
        queues.append((documents[k].name, [tasks[i] for i in order]))
    while queues := [queue for queue in queues if queue[1]]:
        for name, tasks in queues:
            yield name, *tasks.pop()


def functions(text: str) -> list[tuple[str, str]]:
    """Questions and answers of a Python file: rename the first argument of a function.

    Returns pairs of the question, which ends after the answer's first line, and the
    rest of the answer. A file that does not parse has none.
    """
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return []
    lines, found = text.splitlines(keepends=True), []
    for node in nodes:
        if not isinstance(node, ast.FunctionDef) or node.body[0].lineno == node.lineno:
            continue
        names = [a.arg for a in node.args.args if a.arg not in ("self", "cls")]
        if not names or re.search(rf"\b{NEW_NAME}\b", text):
            continue
        own = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
        # Not as an attribute, and not inside a longer name.
        edited = re.sub(rf"(?<![.\w]){re.escape(names[0])}\b", NEW_NAME, own)
        head, _, body = edited.partition("\n")
        wish = f"# The same function, with {names[0]} renamed to {NEW_NAME}:"
        found.append((f"{own.rstrip()}\n\n\n{wish}\n{head}", f"\n{body.rstrip()}\n"))
    return found


def paragraphs(text: str) -> list[tuple[str, str]]:
    """Questions and answers of a prose text: repeat a paragraph from its first words.

    Returns pairs as `functions`.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        own = paragraph.strip()
        begin = re.match(rf"(?:\S+\s+){{{WORDS - 1}}}\S+", own)
        if begin:
            head, rest = begin.group(), own[begin.end() :]
            found.append((f"{own}\n\n{AGAIN}\n\n{head}", rest + "\n"))
    return found

"""Speech for several notebooks: corpora, features, batches (and models beside them).

The corpus: `shipped` reads the part that comes with the collection, `plan` and
`synthesise` speak a larger one with espeak-ng, `librispeech`, `aishell`, `covost` and
`folder` list real ones for `prepare`. All give a `Corpus`; `Stream` and `padded` make
batches of it. Models and training stand in `lib.speech.conformer` and its neighbours,
imported from there, because they need torch.
"""

from lib.speech.batches import (
    Batch,
    Stream,
    bucketed,
    epoch_of,
    in_order,
    padded,
    spec_augment,
)
from lib.speech.corpus import Corpus, Utterance, homophones, joined
from lib.speech.espeak import SPEAKERS, SpeechError, speak
from lib.speech.features import (
    add_noise,
    batch_features,
    coloured,
    extract_features,
    frame_labels,
    frame_times,
    log_mel,
    mel_filters,
    resample,
    tilted,
)
from lib.speech.grammar import (
    LANGUAGES,
    draw_meanings,
    meaning_at,
    number_of_meanings,
    ordered,
    parse,
    sentence,
    word_types,
)
from lib.speech.readers import (
    Entry,
    Listing,
    Record,
    aishell,
    covost,
    folder,
    librispeech,
    prepare,
    records,
)
from lib.speech.synthesis import (
    NARROW,
    PARALLEL_SPEAKERS,
    Conditions,
    Request,
    clip,
    plan,
    shipped,
    split_speakers,
    spoken_audio,
    synthesise,
)
from lib.speech.vocabulary import Vocabulary, normalised, phone_vocabulary

__all__ = [
    "LANGUAGES",
    "NARROW",
    "PARALLEL_SPEAKERS",
    "SPEAKERS",
    "Batch",
    "Conditions",
    "Corpus",
    "Entry",
    "Listing",
    "Record",
    "Request",
    "SpeechError",
    "Stream",
    "Utterance",
    "Vocabulary",
    "add_noise",
    "aishell",
    "batch_features",
    "bucketed",
    "clip",
    "coloured",
    "covost",
    "draw_meanings",
    "epoch_of",
    "extract_features",
    "folder",
    "frame_labels",
    "frame_times",
    "homophones",
    "in_order",
    "joined",
    "librispeech",
    "log_mel",
    "meaning_at",
    "mel_filters",
    "normalised",
    "number_of_meanings",
    "ordered",
    "padded",
    "parse",
    "phone_vocabulary",
    "plan",
    "prepare",
    "records",
    "resample",
    "sentence",
    "shipped",
    "speak",
    "spec_augment",
    "split_speakers",
    "spoken_audio",
    "synthesise",
    "tilted",
    "word_types",
]

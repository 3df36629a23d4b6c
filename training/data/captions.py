"""Chooses the caption of an image and its wording."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm.zero_shot import label_sentences

DRAWS = 6  # uniform numbers for one caption


@dataclass(frozen=True, kw_only=True)
class CaptionChoice:
    keyword_share: float = 0.3
    template_share: float = 0.0
    kana_share: float = 0.0
    per_image: int = 1

    def choose(self, languages: Sequence[tuple[list[str], list[str]]], draws: np.ndarray) -> list[str]:
        """`languages`: (captions, keywords) of each.  `draws`: (per_image * DRAWS,) in [0, 1).

        One caption per slot: languages in turns from a random one on; a caption or keyword; perhaps in a sentence.
        """
        chosen, first = [], int(draws[0] * len(languages))
        for slot, (_, kind, which, kana, template, wording) in enumerate(draws.reshape(-1, DRAWS)):
            names, keywords = languages[(first + slot) % len(languages)]
            pool = keywords if keywords and (not names or kind < self.keyword_share) else names
            caption = pool[int(which * len(pool))]
            if kana < self.kana_share:
                ways = ways_of_writing(caption)
                caption = ways[int(kana / self.kana_share * len(ways))]
            if template < self.template_share:
                sentences = label_sentences(caption)
                caption = sentences[int(wording * len(sentences))]
            chosen.append(caption)
        return chosen


_KATAKANA = "".join(map(chr, range(0x30A1, 0x30F7)))
_HIRAGANA = "".join(map(chr, range(0x3041, 0x3097)))
_TO_HIRAGANA, _TO_KATAKANA = str.maketrans(_KATAKANA, _HIRAGANA), str.maketrans(_HIRAGANA, _KATAKANA)


def ways_of_writing(text: str) -> list[str]:
    """A Japanese word as people write it too: 赤リンゴ -> 赤りんご, 赤いリンゴ, 赤いりんご; else the text itself.

    Kana change syllabary, except hiragana beside kanji, which may be grammar (赤い丸, 木の実); a colour before a
    katakana word may be an adjective.
    """
    adjective = re.sub("(赤|青|白|黒)(?=[ァ-ヺ])", r"\1い", text)
    ways = {_other_kana(text): None, adjective: None, _other_kana(adjective): None}
    return [way for way in ways if way != text] or [text]


def _other_kana(text: str) -> str:
    if all(letter in _HIRAGANA or letter == "ー" for letter in text):
        return text.translate(_TO_KATAKANA)
    return text.translate(_TO_HIRAGANA)

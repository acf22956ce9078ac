"""The languages of Whisper's vocabulary, in the order of their tokens (openai/whisper `tokenizer.py`, LANGUAGES)."""

from __future__ import annotations

from izwi_lab.errors import InvalidInputError

_TABLE = """
en english,zh chinese,de german,es spanish,ru russian,ko korean,fr french,ja japanese,pt portuguese,tr turkish,
pl polish,ca catalan,nl dutch,ar arabic,sv swedish,it italian,id indonesian,hi hindi,fi finnish,vi vietnamese,
he hebrew,uk ukrainian,el greek,ms malay,cs czech,ro romanian,da danish,hu hungarian,ta tamil,no norwegian,
th thai,ur urdu,hr croatian,bg bulgarian,lt lithuanian,la latin,mi maori,ml malayalam,cy welsh,sk slovak,
te telugu,fa persian,lv latvian,bn bengali,sr serbian,az azerbaijani,sl slovenian,kn kannada,et estonian,
mk macedonian,br breton,eu basque,is icelandic,hy armenian,ne nepali,mn mongolian,bs bosnian,kk kazakh,
sq albanian,sw swahili,gl galician,mr marathi,pa punjabi,si sinhala,km khmer,sn shona,yo yoruba,so somali,
af afrikaans,oc occitan,ka georgian,be belarusian,tg tajik,sd sindhi,gu gujarati,am amharic,yi yiddish,lo lao,
uz uzbek,fo faroese,ht haitian creole,ps pashto,tk turkmen,nn nynorsk,mt maltese,sa sanskrit,lb luxembourgish,
my myanmar,bo tibetan,tl tagalog,mg malagasy,as assamese,tt tatar,haw hawaiian,ln lingala,ha hausa,ba bashkir,
jw javanese,su sundanese,yue cantonese
"""
LANGUAGES: dict[str, str] = dict(
    (code, name) for code, _, name in (item.strip().partition(" ") for item in _TABLE.replace("\n", "").split(","))
)
_ALIASES = {
    "burmese": "my",
    "valencian": "ca",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "pushto": "ps",
    "panjabi": "pa",
    "moldavian": "ro",
    "moldovan": "ro",
    "sinhalese": "si",
    "castilian": "es",
    "mandarin": "zh",
    "jv": "jw",
    "iw": "he",
    "nb": "no",
}
UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


def language_code(language: str, known: int) -> str:
    """The code of a language given by ISO code ("en", "en-US") or English name, among the first `known` languages.

    Raises InvalidInputError listing the codes.
    """
    codes = tuple(LANGUAGES)[:known]
    asked = language.strip().casefold()
    names = {name: code for code, name in LANGUAGES.items()} | _ALIASES
    for candidate in (asked, asked.replace("_", "-").partition("-")[0]):
        code = names.get(candidate, candidate)
        if code in codes:
            return code
    raise InvalidInputError(
        f"Unknown language {language!r}.", hint=f"Expected an English name or one of: {', '.join(codes)}."
    )

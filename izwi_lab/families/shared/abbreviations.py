"""Words whose period does not end a sentence: English, German, French, Spanish, Italian, Portuguese, some Russian.

Single letters ("J. S. Bach", "z. B.", "p.m.") and periods beside digits ("Nr. 7", "3. Oktober") need no list. Words
that also end sentences as they are ("art", "so", "am") are left out, or stand here as they are written when shortened.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# In any case.
_ANY = _words(
    """
    approx assn cf dept dipl eds eg esp est etc ext ie incl misc nos pp resp univ viz vols vs
    abb abs abschn allg anm aufl bd bez bspw betr bzgl bzw ca chr dgl ders ehem einschl entspr evtl exkl ff frz gegr geb
    gest ggf ggfs hrsg inkl insb insbes jh jhd jhdt jhs kap kath lfd mio mrd mwst nr nrn pkt rer röm sog städt std
    str stv tsd ugs urspr usf usw vgl vorm wiss zt zw zzgl abzgl österr
    adr boul bibl chap éd éds env janv févr juil sept oct nov déc dez okt dic ex tél
    admón aprox av avda cía depto dña dpto ej gral izq máx mín núm núms pág págs pza rte ste tel teléf
    avv cfr dott dottssa ecc egr gent ing pag pagg prof profa profssa sig sigg sigra spett tav
    exma exmo ilma ilmo ltda obs pça séc srta srtas sra sras
    al dr dra drs dras hr hrn fr frl mr mrs messrs mme mmes mlle mlles mgr msgr jr sr sres srs
    capt cmdr cpl gov lieut lt maj pres rev sen sgt st supt
    ул др стр рис руб тыс млн млрд проф напр
    """
)
# Only as written here: in small letters they are words, in capitals they stand for something else.
_CAPITAL = _words(
    """
    Adm Apr Apto Arch Aug Ave Blvd Bros Cap Cel Cia Cie Co Col Corp Dec Eng Feb Fig Figs Fri Ft Gebr Gen Hab Hbf Hon Hwy
    Inc Jan Jd Jul Jun Jän Km Lic Ltd Mar Me Med Mi Min Mo Mon Mons Ms Mt Mär On Ph Pl Plc Pr Rag Rd Ref Rep Sa Sep Sq
    Sta Sto Thu Thurs Tue Tues Tv Ud Uds Vd Vds Vol AA EE MM SS UU VV
    """
)
# Only in small letters: with a capital they are names, or words of their own.
_SMALL = _words("apr aug cit feb gen hab ibid jan jul jun jur max med min mind nat op phil phys sec")
_ROMAN = re.compile(r"(?=[IVX]{2})X{0,3}(?:IX|IV|V?I{0,3})")  # "Ludwig XIV. König"


def abbreviated(word: str) -> bool:
    """Whether a period after this word, letters alone, belongs to it. Single letters are no words here."""
    lower = word.lower()
    if lower in _ANY or lower.endswith("str"):  # "Hauptstr."
        return True
    return word in _CAPITAL or word in _SMALL or bool(_ROMAN.fullmatch(word))

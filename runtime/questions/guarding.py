"""What a customer's assistant neither hears nor says: by rules, in English, without a model.

Numbers by their form: IMEI of 3GPP TS 23.003, ICCID of ITU-T E.118, payment cards of ISO/IEC 7812
with its check digit, telephone numbers as E.164 and national ones are written. Requests by what is
done (read out, change) to what (secrets, account data, other people's data); whoever asks how it is
done, where it is found or what it is, may.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.conversation import Message

REFUSAL = (
    "I cannot read out or change account data, PINs, passwords or codes here, nor act for others. "
    "Please use the app, the customer portal or a shop, where you can prove who you are. "
    "Never give a code or a password to anyone."
)
STOPPED = "... (stopped: nobody should ask you for a PIN, password or one-time code)"

# Numbers and addresses

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
NUMBER = re.compile(r"(?<!\w)[+(]{0,2}\d+(?:[ \t\u00a0().+/-]{1,3}\d+)*(?!\w)")
GROUP = re.compile(r"[+(]*\d+")
# What looks like a long number and is none: an address of IPv4, a date.
OTHER = re.compile(
    r"(?<![\w.])(?:\d{1,3}(?:\.\d{1,3}){3}|\d{1,2}([./-])\d{1,2}\1\d{4}|\d{4}([./-])\d{2}\2\d{2})"
    r"(?![\w.]*\d)"
)
# ISO 13616, as it is printed or without blanks.
IBAN = re.compile(r"\b[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
NATIONAL = re.compile(r"1?[2-9]\d\d[2-9]\d{6}")
# Groups of digits that one number is written in.
MOST_GROUPS = 20
# The end of a text that grows, of which more may come: a word, or a number and a word.
GROWING = re.compile(r"(?:[+(]*\d[\d \t\u00a0().+/-]*)?\S*\Z")


def masked(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a text with numbers and addresses of people named only, and which those were."""
    spans = [(found.start(), found.end(), "e-mail address") for found in EMAIL.finditer(text)]
    spans += [(found.start(), found.end(), "bank account") for found in IBAN.finditer(text)]
    digits = "".join(_digit(char) for char in text)
    others = [(found.start(), found.end(), "") for found in OTHER.finditer(digits)]
    for start, end, _ in (*spans, *others):
        digits = digits[:start] + "x" * (end - start) + digits[end:]
    for found in NUMBER.finditer(digits):
        spans += _numbers(digits, found.start(), found.end())
    made, at = "", 0
    for start, end, kind in sorted(spans):
        made += f"{text[at:start]}[{kind}]"
        at = end
    return made + text[at:], tuple(dict.fromkeys(kind for *_, kind in sorted(spans)))


def _digit(char: str) -> str:
    value = unicodedata.digit(char, None)
    return char if value is None else str(value)


def _numbers(text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    """Yield which groups of a run of digits are a number of some kind, the longest first."""
    groups = [(found.start(), found.end()) for found in GROUP.finditer(text, start, end)]
    digits = [re.sub(r"\D", "", text[first:after]) for first, after in groups]
    joined, sizes = "".join(digits), [0, *accumulate(map(len, digits))]
    at = 0
    while at < len(groups):
        begin = text[groups[at][0] : groups[at][1]].lstrip("(")
        for last in range(min(len(groups), at + MOST_GROUPS), at, -1):
            if not 8 <= sizes[last] - sizes[at] <= 20:
                continue
            if kind := _kind(begin, joined[sizes[at] : sizes[last]]):
                yield groups[at][0], groups[last - 1][1], kind
                at = last - 1
                break
        at += 1


def _kind(begin: str, digits: str) -> str | None:
    """Return what a number is, None for no known kind; `begin` is how it is written at first."""
    size = len(digits)
    if size in (19, 20) and digits.startswith("89"):
        return "ICCID"
    if 13 <= size <= 19 and _luhn(digits):
        imei = size == 15 and digits[:2] not in ("34", "37")
        if imei or digits[0] in "23456":
            return "IMEI" if imei else "card number"
    if begin.startswith("+"):
        return "phone number" if size <= 15 else None
    if digits.startswith("00"):
        return "phone number" if 10 <= size <= 17 else None
    if digits.startswith("0"):
        return "phone number" if 9 <= size <= 12 else None
    return "phone number" if NATIONAL.fullmatch(digits) else None


def _luhn(digits: str) -> bool:
    doubled = (2 * int(digit) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(d - 9 * (d > 9) for d in doubled)) % 10 == 0


# Requests

HOW = r"(?:how|where|why|what|when|which|whether|whom|if)"
SECRET = (
    r"(?:pins?(?: (?:code|number)s?)?|puks?(?: codes?)?|pass ?(?:word|code|phrase)s?"
    r"|passwor[dt]e?s?|kennwort|otps?|cv[vc]2?|credentials|security answer|secret word"
    r"|(?:one[- ]?time|verification|security|login|access|authenti\w+|auth|sms|2fa|unlock\w*)"
    r" ?(?:codes?|passwords?|passcodes?|pins?))"
)
KEPT = (
    r"(?:(?:credit |debit |payment )?cards? (?:on file|number|details)|card you have|iban"
    r"|bank (?:account|details|data)|date of birth|birth ?dates?|social security"
    r"|account (?:data|details)|customers?'? (?:data|records?|list|details))"
)
PEOPLE = (
    r"(?:wife|husband|partner|girl ?friend|boy ?friend|ex|ex-\w+|son|daughter|child|kid|mother"
    r"|father|mum|mom|dad|parents|brother|sister|boss|neighbou?r|friend|colleague|flat ?mate"
    r"|room ?mate|someone|somebody|another (?:customer|person|subscriber)|other (?:customer"
    r"|people|person)s?)"
)
PRIVATE = (
    r"(?:call (?:history|logs?|lists?|records?)|calls|(?:text )?messages?|texts|sms|location"
    r"|whereabouts|position|address|bills?|invoices?|browsing|chats?|account|contract|usage"
    r"|data|number|voicemails?)"
)
# Some words, none of which asks how or where something is done, or for an explanation.
ABOUT = (
    r"steps?|instructions?|guides?|links?|advice|tips?|reasons?|difference|help|explanation"
    r"|manual|information"
)
WORDS = rf"(?:(?!(?:{HOW}|{ABOUT})\b)[\w'-]+[ ,:]+){{0,%d}}?"
OWN = r"(?:my|the|his|her|their|this|that|our|your|a customer's|the customer's)"
# What stands before something that somebody is told to do, rather than asks about.
TOLD = (
    r"(?:^|[,:;!?.] |\b(?:please|pls|kindly|just|now|then|and|so|you to|(?:can|could|would"
    r"|will|must|should) you(?: please| just| also| kindly)?|(?:i'd|i would|we'd) like to"
    r"|(?<!do )(?<!did )i (?:want|need) to|let's|let us|task is to) )"
)
FOR_SALE = r"(?:link|mail|e-mail|instructions|steps|letter|guide|form|page|request|policy|rules)"

RULES: dict[str, tuple[str, ...]] = {
    "secrets": (
        # Tell me the PIN; read out, print, look up the password.
        rf"\b(?:tell|give|read|reads|show|send|text|mail|forward|dictate|get|hand|spell|whisper"
        rf"|say|provide|share|disclose|reveal|remind)(?: \w+)? (?:me|us|to me)\b[ ,:]+{WORDS % 9}"
        rf"(?:{SECRET}|{KEPT}|digits of)\b(?! {FOR_SALE})",
        rf"{TOLD}(?:reveal|disclose|print|display|output|dump|leak|hand (?:over|out)"
        rf"|read(?: out)?|look up|list|encode|recite|expose|extract|provide|show|share|say|tell"
        rf"|give|send|quote)\b"
        rf"[ ,:]+{WORDS % 10}(?:{SECRET}|{KEPT})\b(?! {FOR_SALE})",
        # What is my PIN.
        rf"\bwhat(?:'s|s| is| was| are|) (?:my|the|his|her|their|this|our|your)\b ?"
        rf"(?:(?!{HOW}\b|difference|purpose|meaning|point|length|format|use|maximum|minimum"
        rf"|limit|risk|best|way|correct|right|default)[\w'.-]+ ){{0,4}}?(?:{SECRET}|{KEPT})\b"
        rf"(?! (?:for|used|needed|good|about|on the|printed|length|{FOR_SALE}|screen|prompt|menu))",
        rf"^(?:(?!{HOW}\b)[\w']+ ){{0,3}}?(?:my|the) (?:[\w']+ )?{SECRET} (?:pls|plz|please|now)\b",
        rf"\b{SECRET}\b[^.!?]*\b(?:tell|show|give|send|read) (?:it to )?(?:me|us)\s*"
        r"(?:now|please|here|quickly)?\s*(?:[.!]|$)",
        rf"\b{SECRET}\b[^.!?]*[;,] ?(?:provide|send|read|say|give|show) it\b",
        rf"\b{SECRET}\b.*\b(?:give|have|get|send|tell|show|say|read|see) (?:it|them)"
        r"(?: (?:to me|here|now|please|then|again|in the chat|this way))*[.!?]*$",
        # Let me have the PIN; I need her password; pull up the code.
        rf"(?:\b(?:let me have|(?:can|could|may|might) i (?:please )?(?:have|get|see|hear)"
        rf"|get me|pull up|fetch|dig out)|(?<!do )(?<!did )\bi(?:'d like| need| want"
        rf"| require)(?: to know)?)\b"
        rf" {WORDS % 3}{OWN} (?:[\w']+ ){{0,3}}?(?:{SECRET}|{KEPT})\b"
        rf"(?! (?:{FOR_SALE}|changed|reset|to (?:work|be)|again i))",
        rf"\bwhich (?:[\w']+ )?(?:{SECRET}|{KEPT}) (?:is|was|do you|did|have)\b(?! (?:meant"
        rf"|needed|right"
        r"|asked|this))",
        # Is 1234 right; the PIN, then.
        rf"\b(?:is|was|are) (?:this|that|it|[\w'-]*\d[\w'-]*) (?:\w+ )??{OWN} (?:right "
        rf"|correct |current |real )?(?:{SECRET}|{KEPT})"
        r"\b(?! (?:for (?:the|this)|in))",
        rf"{TOLD}(?:confirm|check|verify|guess)\b {WORDS % 4}(?:{SECRET}|{KEPT})\b",
        rf"(?:^|[.!?;:] )(?:so|and|now|ok|okay|then)?,? ?(?:the |my |her |his )?{SECRET}"
        r"(?: (?:for|of|to) [^.!?]*)?\?",
        # By a riddle, in pieces.
        rf"\b(?:digits?|letters?|characters?|first|last|half|part) (?:\w+ )?of (?:my|the|his"
        rf"|her|their)"
        rf" (?:[\w']+ )?(?:{SECRET}|card)\b",
        rf"\b(?:real|actual|all|every|sample\w*|other) (?:of )?(?:\w+ )?customers?'?s?'? "
        rf"(?:{SECRET}|{KEPT}|address\w*|numbers?|data)\b",
    ),
    "account": (
        rf"{TOLD}(?:change|update|set(?! up)|make|reset|replace|edit|correct|put|register"
        rf"|switch|delete)\b ?"
        rf"{WORDS % 6}(?:(?:billing |home |postal |e-?mail )?address|e-?mail|bank (?:account"
        rf"|details)|iban|direct debit|payment (?:method|details)|owner|holder|(?:sur|last "
        rf"|first |account )?name|security question|account|profile|{SECRET})\b(?! {FOR_SALE})",
        rf"{TOLD}(?:remove|disable|deactivate|turn off|switch off|bypass|skip|lift|drop|cancel)\b ?"
        rf"{WORDS % 6}(?:two[- ]factor\w*|2fa|(?:sms )?confirmations?|verification"
        rf"|identity check|id check|security (?:question|check)s?|authentication|(?:pin"
        rf"|password) (?:lock|protection)|(?:account|login) (?:lock|pin|password|protection))\b",
        r"\b(?:debit|charge|collect|bill)\b[^.!?]*\b(?:from now on|new bank|this account)\b"
        r"|\bnew bank\b[^.!?]*\b(?:debit|charge|collect)\b",
        r"\b(?:without|skip|bypass|avoid|no) (?:\w+ ){0,2}(?:verification|identity check"
        r"|id check|security (?:question|check)s?|authentication)\b",
        rf"{TOLD}(?:add|make|put|set|register|authori[sz]e)\b ?{WORDS % 4}(?:authori[sz]ed"
        rf"|owner|holder|user|contact)\b{WORDS % 3}",
        # A number to another SIM.
        rf"{TOLD}(?:swap|transfer|move|port|activate|assign|switch|put|register|link|clone"
        rf"|duplicate|issue)\b ?{WORDS % 7}(?:e?sims?(?: card)?)\b",
        rf"(?:(?<!do )\bi(?:'d like| want| need)|{TOLD}(?:have|get))\b {WORDS % 5}(?:number|line)"
        r" (?:on|onto|to) (?:the|a|an|this|that|another|my|his|her) (?:\w+ )?e?sims?\b",
    ),
    "other people": (
        rf"\b(?:access to|log ?in to|see|read|open|cancel|end|terminate|close|extend|change"
        rf"|upgrade)"
        rf" (?:my |his |her |their |an? )(?:\w+ )?{PEOPLE}(?:'s|s) (?:\w+ )?{PRIVATE}\b",
        r"\bwhere (?:she|he|they) (?:lives?|works?|is|are|stays?)\b",
        rf"\b(?:show|read|tell|give|send|list|forward|get|see|print)\b ?(?:\w+ )?{WORDS % 8}"
        rf"{PRIVATE}\b[^.!?]*\b(?:my|his|her|their|an?) (?:\w+ )?{PEOPLE}\b",
        rf"\b(?:show|read|tell|give|send|list|forward|get|see|print|what(?:'s| is| are|s))\b ?"
        rf"{WORDS % 4}{PEOPLE}(?:'s|s)? (?:\w+ )?{PRIVATE}\b",
        rf"\b(?:track|locate|trace|spy on|tap|follow|monitor|intercept)\b ?{WORDS % 6}{PEOPLE}\b",
        rf"\bwhere (?:is |was |has |did )?(?:my |an? )?(?:\w+ )?{PEOPLE}(?:'s"
        rf"|s)? (?:\w+ )?(?:phone|sim|mobile|is|was)\b",
        rf"\b(?:who|whom|what|when|how much|how often|how long) (?:did|does|has|is) (?:my |the "
        rf"|his |her )?{PEOPLE}(?: last| ever)?"
        r" (?:spend|spent|use|call|text|write|message|talk|ring|phone|calling|texting)\w*",
        r"\bwho(?:m)? (?:does|owns?|has|is)\b(?! i\b)[^.!?]*\bnumber\b(?! (?:do|should|can) i)",
        r"\bwhose\b[^.!?]*\b(?:number|sim|line|account)\b",
        r"\b(?:name|address|owner|location|details) of (?:the |this |that "
        r"|an? )?(?:\w+ )?(?:person|customer|owner|caller|subscriber|man|woman|number)\b",
    ),
    "instructions": (
        r"\b(?:ignore|disregard|forget|override|drop|bypass|violate"
        r"|break)\b[^.!?]{0,40}\b(?:you were told|said before|instructions?|rules|guidelines"
        r"|restrictions|polic(?:y|ies)|prompt|directives|training|safety)\b",
        r"\b(?:developer|debug|admin\w*|god|jailbreak|maintenance|dan|root) mode\b"
        r"|\bsystem override\b|\bjailbreak\b",
        r"\b(?:no|without|free of) (?:any )?(?:restrictions|rules|limits|filters|guidelines)\b",
        r"\b(?:system|initial|hidden|secret|original|internal) (?:\w+ )?(?:prompt"
        r"|instructions?|configuration)\b",
        rf"{TOLD}(?:print|show|list|tell me|give me|repeat|reveal|quote|display"
        rf"|explain) (?:me )?your"
        r" (?:\w+ )?(?:rules|instructions|guidelines|system message|policy|policies|directives)\b",
        r"\b(?:don't|do not|needn't|no need to|without|stop)(?: have to| need to)? (?:follow"
        r"|obey|apply|respect|check|following)\w*\b[^.!?]{0,30}\b(?:policy|policies|rules"
        r"|guidelines)\b",
        r"\b(?:everything|text|words?|lines?) above\b|\b(?:were|was) you (?:told|given"
        r"|instructed)\b",
        rf"\b(?:pretend|act as|role ?play|imagine|you are now|from now on|simulate|game)\b.*"
        rf"\b(?:{SECRET}|{KEPT}|customers?)\b",
        rf"\b(?:i'm|i am|i work|we are|as|on behalf of|this is)\b[^.!?]{{0,30}}\b(?:technician"
        rf"|admin\w*|police|fraud|developer|employee|manager|engineer|head office|security team"
        rf"|support team|staff)\b.*\b(?:{SECRET}|{KEPT}|address|customers?)\b",
    ),
}
# A secret, or what is somebody else's, that a sentence is about; and what sentences say that ask
# how something works or tell what does not.
ABOUT_ONES = {
    "secrets": re.compile(
        rf"\b(?:{OWN}|account|customer|master|admin\w*|user'?s?) (?:[\w'-]+ ){{0,2}}?{SECRET}\b"
        rf"(?! {FOR_SALE})|\bthe (?:passwords|pins|codes)\b|\b(?:code"
        rf"|digits) (?:that )?(?:i was sent|you sent"
        r"|unlock)"
    ),
    "other people": re.compile(
        rf"\b(?:{OWN}|an?) (?:\w+ )?{PEOPLE}(?:'s|s') (?:\w+ )?(?:{PRIVATE}|phone|sim)\b"
        rf"|\bdo(?:es)? (?:my|his|her) {PEOPLE} (?:call|text|write|phone|ring|message)\b"
    ),
}
WANTS = re.compile(
    r"\b(?:you|please|pls|for me|to me|me|urgent\w*|now|quick\w*|share|tell|give|write|repeat"
    r"|answer"
    r"|enable|let|put|show|read|hand|state|needs?|wants?|mail|email|send|digits)\b"
)
HARMLESS = re.compile(
    r"\b(?:how|why|when|whether|where (?:do|can|is|are|does|to|should)|which (?:sim|shop|form"
    r"|one)|what (?:do|should|can|could|happens|does|if)|do|does|is it|is there|are there"
    r"|can i|could i|may i|should i|must i|am i|did i|as (?:do|does)|no|not|never|nothing"
    r"|cannot|without|stopped|fail\w*|wrong\w*|error|rejects?|rejected|reject\w*|locked"
    r"|blocked|expired|empty|lost|forgot\w*|forget(?:s|ting)|accepts?|asks?|says?|said|works?"
    r"|broken|slow\w*|scam|mistake|problem|trouble|help|same|allowed|safe|secure|different"
    r"|needed|necessary|used|entered|typed|tried|stolen|switch off|steps|explain|printed)\b|n't\b"
)
# Characters of a message, of a part that is read at a time, and that two parts share.
LONGEST, PART, OVERLAP = 32_000, 1_000, 200
LEET = str.maketrans("013457@$", "oieastas")
MIXED = re.compile(r"(?<![\w@$])(?=[\w@$]*[a-z])(?=[\w@$]*[0-9@$])[\w@$]+")
SPELLED = re.compile(r"\b(?:[a-z][ ._*-]{1,2}){2,}[a-z]\b\.?")


def refusal(text: str) -> str | None:
    """Return what a request is refused for, one of `RULES`; None for one that may be answered.

    It is read in parts, since rules take time by the square of what they read. Raises `InputError`
    for one of more than `LONGEST` characters.
    """
    if len(text) > LONGEST:
        raise InputError(f"a message of {len(text):,} characters: the guard reads {LONGEST:,}")
    plain = _plain(text)
    starts = range(0, max(1, len(plain) - OVERLAP), PART - OVERLAP)
    return next((found for at in starts if (found := _refused(plain[at : at + PART]))), None)


def _refused(plain: str) -> str | None:
    sentences = re.split(r"(?<=[.!?])\s+", plain)
    for name, found in ABOUT_ONES.items():
        if any(
            found.search(one) and WANTS.search(one) and not HARMLESS.search(one)
            for one in sentences
        ):
            return name
    for name, rules in RULES.items():
        # The module `re` keeps what it compiled.
        if any(re.search(rule, plain) for rule in rules):
            return name
    return None


def _plain(text: str) -> str:
    """Return a text as it is read aloud: no tricks with letters, on one line."""
    made = unicodedata.normalize("NFKC", text)
    made = "".join(char for char in made if unicodedata.category(char) != "Cf").casefold()
    made = " ".join(made.replace("\u2019", "'").split())
    made = SPELLED.sub(lambda found: re.sub(r"[^a-z]", "", found[0]), made)
    return MIXED.sub(lambda found: found[0].translate(LEET), made)


def incoming(messages: Sequence[Message]) -> tuple[list[Message], tuple[str, ...], str | None]:
    """Return what a model may hear of a conversation, what was masked, and why it may not answer.

    What users said is masked; what was said last decides whether it is answered.
    """
    made: list[Message] = []
    kinds: list[str] = []
    for message in messages:
        text, found = masked(message.content) if message.role == "user" else (message.content, ())
        made.append(replace(message, content=text))
        kinds += found
    return made, tuple(dict.fromkeys(kinds)), refusal(messages[-1].content)


# Answers

ASKED = (
    r"(?:pins?|pass ?(?:word|code|phrase)s?|otps?|cv[vc]2?|(?:one[- ]?time|verification"
    r"|security|sms|login) (?:code|password|passcode|pin)s?)"
)
YOURS = rf"(?:your|the) (?:[\w'-]+ ){{0,4}}?{ASKED}\b"
ASKS = re.compile(
    rf"\b(?:(?:tell|give|send|text|read|show|e-?mail|dictate to|provide) (?:me|us)(?: with)?"
    rf"|(?:reply|respond|answer) with|let (?:me|us) know|(?:please|can you|could you|would you"
    rf"|to) (?:share|provide|state|disclose|submit|send|give|tell)|what(?:['\u2019]s| is)|(?:i"
    rf"|we)(?:['\u2019]ll| will)?(?: also)? (?:need|require|want))"
    rf" (?:\w+ )??{YOURS}|\b(?:enter|type|write|post|share|confirm|put) {YOURS}"
    rf"(?P<later> (?:here|below|in (?:this|the) chat|in your (?:reply|answer)|with (?:me|us)"
    rf"|to (?:me|us)\b|so (?:that )?(?:i|we)\b))",
    re.IGNORECASE,
)
DENIED = re.compile(
    r"\b(?:never|not|nobody|no one|without|anyone|someone|somebody|avoid|refuse|scam\w*)\b"
    r"|n['\u2019]t\b",
    re.IGNORECASE,
)


def outgoing(text: str, last: bool) -> tuple[str, bool]:
    """Return what may be shown of an answer while it grows, and whether it has to stop there.

    What is shown of a longer text begins with what is shown of its beginning. `last` says that
    nothing follows.
    """
    sure = text
    if not last:
        found = GROWING.search(text)
        assert found
        sure = text[: found.start()]
    for found in ASKS.finditer(sure):
        start = max(sure.rfind(end, 0, found.start()) for end in ".!?\n")
        if not DENIED.search(sure, start + 1, found.start()):
            # What comes before the secret's last word, or what says where to, was shown already.
            secret = re.search(rf"\b{ASKED}\b", sure[found.start() :], re.IGNORECASE)
            assert secret
            word = found.start() + secret.start() + secret[0].rfind(" ") + 1
            end = found.start("later") + 1 if found["later"] else word
            return masked(sure[:end])[0] + STOPPED, True
    return masked(sure)[0], False

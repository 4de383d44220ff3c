"""Personal data and secrets: patterns with checksums, so that a number is a card only where its digits add up.

Own patterns for personal data; keys and tokens by `detect-secrets`' detectors, which know each issuer's form, and own patterns beside
them. Nothing is looked up and nothing leaves the machine.

References:
    ISO/IEC 7812-1 (Luhn), ISO 13616-1 (IBAN, modulo 97), RFC 5321 (mail addresses, in the part that people use), RFC 7519 (JWT).
"""

import base64
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lora_select.data.gate.checked_rows import Flag, GateRow

PERSONAL = ("email", "phone", "card", "iban", "ip")
SECRET = ("private-key", "jwt", "key")


@dataclass(frozen=True)
class Match:
    """Personal data or a secret in a text: what kind, and where (letters `start` to `end`)."""

    kind: str
    start: int
    end: int


_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,62}[a-zA-Z0-9])?\.)+[a-zA-Z]{2,24}(?![\w-])"
)
_EXAMPLE = re.compile(
    r"@(.*\.)?(example\.(com|org|net|edu)|test|invalid|localhost|domain\.com|email\.com)$|@\d|^(user|name|your\W?name|foo|test)@",
    re.I,
)
_CARD = re.compile(r"(?<![\d.,-])(?:\d[ -]?){12,}\d(?![\d-]|[.,]\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{2,4}){3,8}(?:[ -]?[A-Z0-9]{1,3})?\b")
_PHONE = re.compile(
    r"(?<![\w.+/=-])(?:"
    r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"  # international
    r"|\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}"  # (212) 555-0134
    r"|\d{3}[.-]\d{3}[.-]\d{4}"  # 212-555-0134
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,4}"  # 030 1234567
    r")(?![\w/]|[.-]\d)"
)
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
_IPV6 = re.compile(
    r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}(?![\w:])|(?<![\w:])(?:[0-9a-fA-F]{1,4}:){2,6}(?::[0-9a-fA-F]{1,4}){1,5}(?![\w:])"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----(?:.*?-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----)?", re.S
)
_JWT = re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}")
_KEYS = re.compile(
    r"\b(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z0-9]{16}\b"  # AWS
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{60,}\b"
    r"|\bglpat-[\w-]{20,}\b|\bxox[abprs]-[\w-]{10,}\b"
    r"|\bsk-(?:proj-|ant-|svcacct-)?[\w-]{20,}\b|\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}\b"
    r"|\bAIza[\w-]{35}\b|\bya29\.[\w-]{20,}|\bhf_[A-Za-z]{30,}\b|\bSG\.[\w-]{16,}\.[\w-]{16,}|\bnpm_[A-Za-z0-9]{36}\b|\bpypi-AgEI[\w-]{50,}"
)
_ASSIGNED = re.compile(
    r"""(?i)\b(?:api[_-]?key|secret[_-]?(?:access[_-]?)?key|access[_-]?token|auth[_-]?token|client[_-]?secret|passw(?:or)?d|private[_-]?token)"""
    r"""["']?\s*[:=]\s*["']?([A-Za-z0-9+/_.!@#$%^&*~-]{12,})"""
)


def personal(rows: Sequence[GateRow]) -> list[Flag]:
    """Rows with mail addresses, phone numbers, payment cards, IBANs or public IP addresses."""
    return _flags(rows, PERSONAL)


def secrets(rows: Sequence[GateRow]) -> list[Flag]:
    """Rows with keys, tokens or private keys."""
    return _flags(rows, SECRET)


def find(text: str, kinds: Sequence[str] = (*PERSONAL, *SECRET)) -> list[Match]:
    """Everything private in a text, in order, none inside another."""
    found = sorted(_all(text, set(kinds)), key=lambda match: (match.start, -match.end))
    made: list[Match] = []
    for match in found:
        if not made or match.start >= made[-1].end:
            made.append(match)
    return made


def redact(value: Any, kinds: Sequence[str]) -> Any:
    """A row, or a text, with a placeholder for each find; keys, roles and types stay as they are.

    Equal finds have equal placeholders within the row, so that who is who stays readable. They are numbered, and nothing of what was
    found is in them: a digest of a phone number could be found again by trying all numbers.

    >>> redact("mail ada@lovelace.io or eva@lovelace.io, not ada@lovelace.io", ["email"])
    'mail [EMAIL-1] or [EMAIL-2], not [EMAIL-1]'
    """
    return _redacted(value, kinds, {})


def _redacted(value: Any, kinds: Sequence[str], known: dict[str, list[str]]) -> Any:
    if isinstance(value, str):
        made, place = [], 0
        for match in find(value, kinds):
            seen = known.setdefault(match.kind, [])
            found = re.sub(r"[\s().-]", "", value[match.start : match.end]).lower()
            if found not in seen:
                seen.append(found)
            made += [value[place : match.start], f"[{match.kind.upper()}-{seen.index(found) + 1}]"]
            place = match.end
        return "".join([*made, value[place:]])
    if isinstance(value, Mapping):  # numbered by sorted keys: rows that are equal but for the order of keys stay equal
        made = {
            key: value[key] if key in ("role", "type") else _redacted(value[key], kinds, known) for key in sorted(value)
        }
        return {key: made[key] for key in value}
    return [_redacted(item, kinds, known) for item in value] if isinstance(value, list | tuple) else value


def _flags(rows: Sequence[GateRow], kinds: Sequence[str]) -> list[Flag]:
    found = []
    for row in rows:
        text = row.everything + (json.dumps(row.tools, ensure_ascii=False) if row.tools else "")
        matches = find(text, kinds)
        if matches:
            seen = ", ".join(f"{match.kind} {_masked(text[match.start : match.end])}" for match in matches[:3])
            found.append(Flag(row.row_id, row.split, seen))
    return found


def _masked(text: str) -> str:
    """Enough to find the place, too little to use it."""
    return f"{text[:3]}…{text[-2:]} ({len(text)} letters)"


def _all(text: str, kinds: set[str]) -> Iterator[Match]:
    digits = any(letter.isdigit() for letter in text)
    if "email" in kinds and "@" in text:
        yield from (
            Match("email", *m.span())
            for m in _EMAIL.finditer(text)
            if not _EXAMPLE.search(m.group()) and ".." not in m.group()
        )
    if "iban" in kinds and digits:
        yield from _ibans(text)
    if "card" in kinds and digits:
        yield from _cards(text)
    if "ip" in kinds and digits:
        yield from (
            Match("ip", *m.span()) for m in (*_IPV4.finditer(text), *_IPV6.finditer(text)) if _is_public(m.group())
        )
    if "phone" in kinds and digits:
        yield from (Match("phone", *m.span()) for m in _PHONE.finditer(text) if _is_phone(m.group()))
    if "private-key" in kinds and "PRIVATE KEY" in text:
        yield from (Match("private-key", *m.span()) for m in _PRIVATE_KEY.finditer(text))
    if "jwt" in kinds and "eyJ" in text:
        yield from (Match("jwt", *m.span()) for m in _JWT.finditer(text) if _is_jwt(m.group()))
    if "key" in kinds:
        yield from (Match("key", *m.span()) for m in _KEYS.finditer(text) if _is_random(m.group(), issued=True))
        yield from (Match("key", *m.span(1)) for m in _ASSIGNED.finditer(text) if _is_random(m.group(1)))
        yield from _detected(text)


def _detected(text: str) -> Iterator[Match]:
    """Finds of `detect-secrets`' detectors of issuers' forms."""
    if not _WORTH.search(text):
        return
    for plugin in _plugins():
        for value in plugin.analyze_string(text):
            start = text.find(value)
            if value and start >= 0 and _is_random(value):
                yield Match("key", start, start + len(value))


_WORTH = re.compile(r"[A-Za-z0-9+/_.-]{20,}")


@cache
def _plugins() -> tuple[Any, ...]:
    from detect_secrets.plugins import (
        aws,
        discord,
        github_token,
        mailchimp,
        npm,
        openai,
        pypi_token,
        sendgrid,
        slack,
        stripe,
        telegram_token,
        twilio,
    )

    return (
        aws.AWSKeyDetector(),
        discord.DiscordBotTokenDetector(),
        github_token.GitHubTokenDetector(),
        mailchimp.MailchimpDetector(),
        npm.NpmDetector(),
        openai.OpenAIDetector(),
        pypi_token.PypiTokenDetector(),
        sendgrid.SendGridDetector(),
        slack.SlackDetector(),
        stripe.StripeDetector(),
        telegram_token.TelegramBotTokenDetector(),
        twilio.TwilioKeyDetector(),
    )


def _is_random(value: str, *, issued: bool = False) -> bool:
    """Whether a key looks drawn and not written: letters and digits mixed (but in an issuer's form), many different ones, no placeholder."""
    body = value.rsplit("_", 1)[-1]
    if re.search(r"(?i)example|xxxx|your|placeholder|dummy|changeme|1234567890|abcdefgh|\.\.\.|0{6,}", value):
        return False
    varied = len(set(body)) >= min(8, max(4, len(body) // 3))
    return varied and (issued or (any(c.isdigit() for c in value) and any(c.isalpha() for c in value)))


def _cards(text: str) -> Iterator[Match]:
    """Runs of digits, and within them those groups that make a card: a number may stand before or after it."""
    for run in _CARD.finditer(text):
        starts = [m.start() for m in re.finditer(r"(?<!\d)\d", run.group())]
        ends = [m.end() for m in re.finditer(r"\d(?!\d)", run.group())]
        spans = ((s, e) for s in starts for e in reversed(ends) if 13 <= e - s <= 23)
        hit = next(((s, e) for s, e in spans if _is_card(run.group()[s:e])), None) if len(starts) <= 12 else None
        if hit:
            yield Match("card", run.start() + hit[0], run.start() + hit[1])


def _is_card(text: str) -> bool:
    digits = [int(letter) for letter in text if letter.isdigit()]
    number = "".join(map(str, digits))
    if (
        not 13 <= len(digits) <= 19
        or len(set(digits)) < 4
        or not re.match(r"4|5[1-5]|2[2-7]|3[47]|6(?:011|5|4[4-9]|2)|35|30[0-5]|3[68]", number)
    ):
        return False
    if len({mark for mark in text if not mark.isdigit()}) > 1:
        return False
    groups = re.split(r"[ -]", text)
    if len(groups) > 1 and not all(len(group) in (3, 4, 5, 6, 7) for group in groups):
        return False
    doubled = [digit * 2 - 9 * (digit > 4) if place % 2 else digit for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _ibans(text: str) -> Iterator[Match]:
    for match in _IBAN.finditer(text):
        for end in range(match.end(), match.start() + 14, -1):  # the pattern may take words that follow
            plain = re.sub(r"[ -]", "", text[match.start() : end])
            if text[end - 1] not in " -" and 15 <= len(plain) <= 34 and _is_iban(plain):
                yield Match("iban", match.start(), end)
                break


def _is_iban(plain: str) -> bool:
    moved = plain[4:] + plain[:4]
    return int("".join(str(int(letter, 36)) for letter in moved)) % 97 == 1


def _is_public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and not (address.version == 4 and int(address) >> 24 < 4)


def _is_phone(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    if not (8 if text.startswith("+") else 9) <= len(digits) <= 15 or len(set(digits)) < 3:
        return False
    return not re.fullmatch(r"(19|20)\d\d[ .-]\d\d?[ .-]\d\d?.*", text)


def _is_jwt(text: str) -> bool:
    head = text.split(".")[0]
    try:
        return "alg" in json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, TypeError):
        return False

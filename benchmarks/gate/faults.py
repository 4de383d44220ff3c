"""Faults that are planted: each function returns rows with faults, and the digests of the rows that are faulty."""

import base64
import json
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import replace

from lora_select.data.gate.checked_rows import GateRow
from lora_select.data.likeness import similar

Planted = tuple[list[GateRow], set[str]]

FOREIGN = {
    "de": "Die Sitzung beginnt heute um neun Uhr und dauert voraussichtlich bis zum Mittag. Der Vertrag wurde gestern von beiden Seiten unterschrieben. Wir haben das Gerät geprüft und keinen Fehler gefunden. Bitte schicken Sie uns die Unterlagen bis Freitag zurück. Im Sommer ist das Museum auch am Abend geöffnet.",
    "fr": "La réunion commence ce matin à neuf heures et devrait durer jusqu'à midi. Le contrat a été signé hier par les deux parties. Nous avons vérifié l'appareil et n'avons trouvé aucun défaut. Veuillez nous renvoyer les documents avant vendredi. En été, le musée reste ouvert le soir.",
    "es": "La reunión empieza hoy a las nueve y durará probablemente hasta el mediodía. Ambas partes firmaron ayer el contrato. Hemos revisado el aparato y no encontramos ningún fallo. Por favor, devuélvanos los documentos antes del viernes. En verano el museo abre también por la noche.",
    "it": "La riunione comincia oggi alle nove e durerà probabilmente fino a mezzogiorno. Il contratto è stato firmato ieri da entrambe le parti. Abbiamo controllato l'apparecchio e non abbiamo trovato difetti. Vi preghiamo di rispedire i documenti entro venerdì. D'estate il museo è aperto anche la sera.",
    "ru": "Заседание начинается сегодня в девять часов и продлится до полудня. Договор был вчера подписан обеими сторонами. Мы проверили прибор и не нашли ошибок. Пожалуйста, пришлите нам документы до пятницы. Летом музей открыт и вечером.",
    "zh": "会议今天上午九点开始，预计持续到中午。合同昨天由双方签署。我们检查了设备，没有发现任何问题。请在星期五之前把文件寄回给我们。夏天博物馆晚上也开放，欢迎参观。这座城市的历史非常悠久，每年都有很多游客。",
    "pl": "Spotkanie zaczyna się dzisiaj o dziewiątej i potrwa prawdopodobnie do południa. Umowa została wczoraj podpisana przez obie strony. Sprawdziliśmy urządzenie i nie znaleźliśmy żadnego błędu. Prosimy o odesłanie dokumentów do piątku. Latem muzeum jest czynne także wieczorem.",
}
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request.",
    "As an AI language model, I do not have personal opinions.",
    "I am unable to provide that information.",
    "Unfortunately, I can't answer questions about this topic.",
    "I'm sorry, I am not able to browse the internet.",
    "I must decline to answer this question.",
    "I apologize, but I cannot create that content.",
    "Sorry, I can't do that.",
    "As a large language model trained on text, I have no access to this.",
)
TOKENS = (
    "<|im_end|>",
    "<|im_start|>user",
    "<|eot_id|>",
    "<|endoftext|>",
    "[INST]",
    "<end_of_turn>",
    "<<SYS>>",
    "<｜end▁of▁sentence｜>",
)


def answered(row: GateRow, answer: str, suffix: str = "") -> GateRow:
    """The row with another last answer."""
    turns = [dict(turn) for turn in row.messages]
    turns[row.last] = {"role": "assistant", "content": answer}
    return replace(row, messages=turns, row_id=row.row_id + suffix)


def asked(row: GateRow, question: str, suffix: str = "") -> GateRow:
    """The row with another question."""
    turns = [dict(turn) for turn in row.messages]
    turns[row.last - 1] = {"role": "user", "content": question}
    return replace(row, messages=turns, row_id=row.row_id + suffix)


def of_answers(rows: Sequence[GateRow], draw: random.Random, share: float, change: Callable[[str], str]) -> Planted:
    """A share of the rows with a changed answer."""
    chosen = {row.row_id for row in draw.sample(list(rows), max(10, round(share * len(rows))))}
    made = [answered(row, change(row.answer)) if row.row_id in chosen else row for row in rows]
    return made, chosen


def added(rows: Sequence[GateRow], new: Sequence[GateRow], draw: random.Random) -> Planted:
    """The rows and new ones among them."""
    made = [*rows, *new]
    draw.shuffle(made)
    return made, {row.row_id for row in new}


def exact_copies(rows: Sequence[GateRow], draw: random.Random) -> Planted:
    """Copies of rows."""
    return added(rows, [replace(row, row_id=row.row_id + "-copy") for row in draw.sample(list(rows), 50)], draw)


def restyled_copies(rows: Sequence[GateRow], draw: random.Random) -> Planted:
    """Copies in other case, spacing and punctuation."""
    changes = (str.upper, lambda t: t.replace(" ", "  "), lambda t: t + "!", lambda t: t.replace(".", " ;"), str.title)

    def restyled(row: GateRow) -> GateRow:
        change = draw.choice(changes)
        turns = [{**turn, "content": change(turn.get("content") or "")} for turn in row.messages]
        return replace(row, messages=turns, row_id=row.row_id + "-style")

    return added(rows, [restyled(row) for row in draw.sample(list(rows), 50)], draw)


def near_copies(rows: Sequence[GateRow], draw: random.Random, count: int = 60) -> Planted:
    """Copies with words changed, dropped and swapped, of a similarity between 0.8 and 0.97."""
    made = []
    candidates = [row for row in rows if len(row.content) > 60]
    for row in draw.sample(candidates, min(len(candidates), count)):
        copy = row
        wanted = draw.uniform(0.81, 0.97)
        for _ in range(60):
            changed = answered(asked(copy, edited(copy.question, draw)), edited(copy.answer, draw))
            if similar.similarity(changed.content, row.content) < wanted:
                break
            copy = changed
        if copy is not row and similar.similarity(copy.content, row.content) < 1:
            made.append(replace(copy, row_id=row.row_id + "-near"))
    return added(rows, made, draw)


def edited(text: str, draw: random.Random) -> str:
    """The text with one small edit."""
    words = text.split(" ")
    place = draw.randrange(len(words))
    kind = draw.randrange(4)
    if kind == 0 and len(words) > 3:
        del words[place]
    elif kind == 1:
        words.insert(place, draw.choice(("really", "then", "just", "also", "perhaps")))
    elif kind == 2 and len(words) > 1:
        other = draw.randrange(len(words))
        words[place], words[other] = words[other], words[place]
    elif words[place]:
        letter = draw.randrange(len(words[place]))
        words[place] = words[place][:letter] + draw.choice(string.ascii_lowercase) + words[place][letter + 1 :]
    return " ".join(words)


def repeated(answer: str, draw: random.Random) -> str:
    """A generation that loops."""
    words = answer.split() or ["yes"]
    start = draw.randrange(max(1, len(words) - 8))
    piece = " ".join(words[start : start + draw.randint(3, 8)])
    return f"{' '.join(words[: draw.randint(0, 10)])} " + " ".join([piece] * draw.randint(12, 30))


def cut(answer: str, draw: random.Random) -> str:
    """An answer that ran into a limit: cut at a random letter of its second half, not at the end of a sentence."""
    for _ in range(20):
        place = draw.randint(len(answer) // 2, max(len(answer) // 2, len(answer) - 3))
        if answer[place - 1 : place].isalnum():
            return answer[:place]
    return answer[: max(1, len(answer) - 4)].rstrip(".!?")


def mojibake(answer: str, draw: random.Random) -> str:
    """UTF-8 read as Windows-1252, or a replaced letter."""
    words = answer.split(" ")
    place = draw.randrange(len(words))
    accented = draw.choice(("é", "ü", "ñ", "’", "“", "€", "ç", "ö", "–"))
    broken = accented.encode().decode("cp1252", errors="ignore") if draw.random() < 0.8 else "\ufffd"
    words[place] = words[place][: len(words[place]) // 2] + broken + words[place][len(words[place]) // 2 :]
    return " ".join(words)


def foreign(draw: random.Random) -> str:
    """A few sentences of another language."""
    language = draw.choice(sorted(FOREIGN))
    mark = "。" if language == "zh" else ". "
    sentences = [sentence for sentence in FOREIGN[language].split(mark) if sentence]
    return mark.join(draw.sample(sentences, draw.randint(2, len(sentences)))).rstrip(" .") + "."


def private(kind: str, draw: random.Random) -> str:
    """A made-up card, IBAN, mail address, phone number, IP address, key, JWT or private key that passes its checksum."""
    return _PRIVATE[kind](draw)


def placed(text: str, secret: str, draw: random.Random) -> str:
    """The text with something at a random place between its words."""
    words = text.split(" ")
    words.insert(draw.randint(0, len(words)), secret)
    return " ".join(words)


def _card(draw: random.Random) -> str:
    prefix, length = draw.choice((("4", 16), ("51", 16), ("55", 16), ("37", 15), ("6011", 16), ("2221", 16)))
    body = prefix + "".join(draw.choices(string.digits, k=length - len(prefix) - 1))
    total = sum(int(d) * 2 - 9 * (int(d) > 4) if i % 2 == 0 else int(d) for i, d in enumerate(reversed(body)))
    number = body + str(-total % 10)
    sep = draw.choice(("", " ", "-"))
    return sep.join(number[i : i + 4] for i in range(0, len(number), 4)) if length == 16 else number


def _iban(draw: random.Random) -> str:
    country, length = draw.choice((("DE", 22), ("GB", 22), ("FR", 27), ("ES", 24), ("NL", 18), ("CH", 21)))
    body = "".join(draw.choices(string.digits, k=length - 4))
    if country in ("GB", "NL"):
        body = "".join(draw.choices(string.ascii_uppercase, k=4)) + body[4:]
    check = 98 - int("".join(str(int(c, 36)) for c in f"{body}{country}00")) % 97
    plain = f"{country}{check:02d}{body}"
    return plain if draw.random() < 0.5 else " ".join(plain[i : i + 4] for i in range(0, len(plain), 4))


def _email(draw: random.Random) -> str:
    first, last = (
        draw.choice(("maria", "j", "tom", "li", "anna")),
        draw.choice(("keller", "smith", "okafor", "rossi", "novak")),
    )
    domain = draw.choice(("gmail.com", "web.de", "uni-bonn.de", "acme-tools.co.uk", "kernel.org"))
    return f"{first}{draw.choice(('.', '_', '', '-'))}{last}{draw.choice(('', '87', '+news'))}@{domain}"


def _phone(draw: random.Random) -> str:
    def digits(count: int) -> str:
        return "".join(draw.choices("23456789", k=count))

    return draw.choice(
        (
            f"+49 {digits(3)} {digits(7)}",
            f"+1 {digits(3)} {digits(3)} {digits(4)}",
            f"({digits(3)}) {digits(3)}-{digits(4)}",
            f"{digits(3)}-{digits(3)}-{digits(4)}",
            f"+44 20 {digits(4)} {digits(4)}",
            f"{digits(3)}.{digits(3)}.{digits(4)}",
            f"+33 {digits(1)} {digits(2)} {digits(2)} {digits(2)} {digits(2)}",
        )
    )


def _ip(draw: random.Random) -> str:
    if draw.random() < 0.2:
        return "2001:" + ":".join(f"{draw.randrange(1, 65536):x}" for _ in range(7)).replace(":", ":", 1)
    return f"{draw.choice((8, 31, 52, 91, 134, 185, 203))}.{draw.randrange(1, 200)}.{draw.randrange(256)}.{draw.randrange(1, 255)}"


def _letters(draw: random.Random, count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(draw.choices(alphabet, k=count))


def _key(draw: random.Random) -> str:
    upper = string.ascii_uppercase + string.digits
    return draw.choice(
        (
            "AKIA" + _letters(draw, 16, upper),
            "ghp_" + _letters(draw, 36),
            "glpat-" + _letters(draw, 20),
            "sk-proj-" + _letters(draw, 40),
            "sk_live_" + _letters(draw, 24),
            "AIza" + _letters(draw, 35),
            "xoxb-" + _letters(draw, 12, string.digits) + "-" + _letters(draw, 24),
            "hf_" + _letters(draw, 34, string.ascii_letters),
            "npm_" + _letters(draw, 36),
            "SG." + _letters(draw, 22) + "." + _letters(draw, 43),
            'api_key = "' + _letters(draw, 32) + '"',
            "password: " + _letters(draw, 14) + "7q!",
        )
    )


def _jwt(draw: random.Random) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'sub': _letters(draw, 10)})}.{_letters(draw, 43)}"


def _private_key(draw: random.Random) -> str:
    kind = draw.choice(("RSA ", "EC ", "", "OPENSSH "))
    body = "\n".join(_letters(draw, 64) for _ in range(4))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----"


_PRIVATE = {
    "card": _card,
    "iban": _iban,
    "email": _email,
    "phone": _phone,
    "ip": _ip,
    "key": _key,
    "jwt": _jwt,
    "private-key": _private_key,
}

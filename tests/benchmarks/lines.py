"""Lines that people write, and texts that are hard to cut.

``EVERYDAY`` are what a completion is asked for in the middle of: several languages, typos, names,
code, tables, addresses. ``hard`` gives texts without an easy place for a trunk to end: runs, blobs,
scripts without spaces, marks, symbols.
"""

# ruff: noqa: E501
from __future__ import annotations

import hashlib
import random

EVERYDAY = [
    "Could you please send me the minutes of yesterday's meeting before noon?",
    "The train to Gdańsk leaves at 14:35 from platform 7, so don't be late.",
    "My grandmother used to bake the best rhubarb pie in the whole neighbourhood.",
    "Ich hätte gern zwei Brötchen und einen Kaffee zum Mitnehmen, bitte.",
    "Nous avons oublié de fermer la fenêtre avant de partir en vacances.",
    "¿Sabes si la biblioteca está abierta los domingos por la tarde?",
    "O gato preto dormia tranquilamente em cima do telhado da vizinha.",
    "Завтра утром мы поедем на дачу, если не будет дождя.",
    "Η θάλασσα ήταν ήρεμη και ο ήλιος έλαμπε πάνω από το νησί.",
    "今天下午三点在会议室开会，请大家准时参加。",
    "明日は友達と一緒に映画を見に行くつもりです。",
    "오늘 저녁에 같이 밥 먹을 사람 있으면 연락 주세요.",
    "अगले हफ्ते हम सब मिलकर पहाड़ों पर घूमने जाएँगे।",
    "Herr Müller-Lüdenscheidt wohnt seit 1998 in der Königstraße 12b.",
    "i thnk teh wether wil be beter tomorow, lets go swiming then",
    "Dr. Aoife O'Sullivan and Prof. Nguyễn Văn Minh will chair the session.",
    "She said, \"I'd've told you if you'd asked!\" and slammed the door.",
    "The separable kernel reduces the convolution's cost considerably.",
    "for i, (name, price) in enumerate(sorted(items.items())): print(i, name)",
    "    if (ptr == NULL || ptr->next == NULL) { return -EINVAL; }",
    "const total = orders.filter(o => o.paid).reduce((s, o) => s + o.amount, 0);",
    "SELECT customer_id, COUNT(*) FROM orders WHERE status = 'open' GROUP BY 1;",
    "pub fn parse_header<'a>(input: &'a [u8]) -> Result<Header<'a>, ParseError> {",
    "| Country | Capital | Population |\n| --- | --- | --: |\n| Norway | Oslo | 709,037 |",
    "name,age,city\nAnna,34,Köln\nBogdan,51,Iași\nChloé,27,Lyon\n",
    '{"id": 4711, "tags": ["blue", "large"], "price": 19.99, "in_stock": true}',
    "https://shop.example.org/catalog/items?id=8842&color=dark-blue&size=XL#reviews",
    "Contact: jane.doe+newsletter@mail.example.com, phone +49 (0)30 901820",
    "ssh -p 2222 deploy@build-07.internal 'sudo systemctl restart nginx'",
    "commit 9f8e7d6c5b4a: Fix off-by-one in ring buffer (closes #1289)",
    "Total: 3 × €12.50 + 2 × €7.25 = €52.00 (incl. 19% VAT)",
    "2024-03-17T08:45:12Z WARN  [worker-3] queue depth 1834 exceeds 1500",
    "π ≈ 3.14159265358979, and e^(iπ) + 1 = 0 is Euler's identity.",
    "Happy birthday, Zoë!!! 🎉🎂 Hope you have an amazing day 😊",
    "@sam lol ikr 😂😂 c u 2nite at 8ish, bring snaxx plz",
    "La réunion d'équipe n'aura pas lieu aujourd'hui; voir l'ordre du jour.",
    "Ça m'étonne qu'il n'ait rien dit à l'Élysée hier soir.",
    "Dzień dobry, chciałbym zarezerwować stolik na cztery osoby.",
    "Bugün hava çok güzel, dışarı çıkıp biraz yürüyelim mi?",
    "Patient presents w/ acute SOB, BP 142/91, HR 103, SpO2 94% on RA.",
]
"""Forty lines."""


def hard(size: int = 200) -> dict[str, bytes]:
    """Texts of about ``size`` bytes, by name, cut after whole characters."""
    rng = random.Random(5)
    digits = "".join(rng.choice("0123456789") for _ in range(size))
    blob = "".join(
        rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
        for _ in range(size)
    )
    whole = {
        "a run": "a" * size,
        "another run": "Zq" * size,
        "spaces": "x =" + " " * size,
        "underscores": "Name: " + "_" * size,
        "dots": "Chapter 1 " + "." * size,
        "newlines": "end." + "\n" * size,
        "laughter": "that was so funny " + "hahaha" * size,
        "hexadecimal": "sha256: "
        + "".join(hashlib.sha256(bytes([i])).hexdigest() for i in range(size // 64 + 1)),
        "digits": digits,
        "base64": "data:image/png;base64," + blob,
        "camel case": "AbstractSingletonProxyFactoryBeanConfigurationManagerImpl" * 9,
        "compound": "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen" * 9,
        "table rule": "| Name | Value |\n|" + "-" * 60 + "|" + "-" * size,
        "box": "┌" + "─" * 40 + "┬" + "─" * size,
        "Thai": "ประเทศไทยเป็นประเทศที่มีวัฒนธรรมเก่าแก่และมีอาหารอร่อยมากมายผู้คนยิ้มแย้มแจ่มใสและต้อนรับนักท่องเที่ยวจากทั่วโลก"
        * 2,
        "Chinese": "中华人民共和国的首都是北京市位于华北平原的北部历史悠久文化底蕴深厚每年吸引大量游客前来参观故宫长城和天坛等名胜古迹"
        * 2,
        "Japanese": "吾輩は猫である名前はまだ無いどこで生れたかとんと見当がつかぬ何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している",
        "Khmer": "ភាសាខ្មែរគឺជាភាសាផ្លូវការរបស់ប្រទេសកម្ពុជានិងត្រូវបាននិយាយដោយប្រជាជនភាគច្រើន",
        "Hindi": "हिंदी भारत की राजभाषाओं में से एक है और इसे करोड़ों लोग बोलते और समझते हैं तथा यह देवनागरी लिपि में लिखी जाती है",
        "Arabic with marks": "بِسْمِ اللَّهِ الرَّحْمَٰنِ الرَّحِيمِ الْحَمْدُ لِلَّهِ رَبِّ الْعَالَمِينَ الرَّحْمَٰنِ الرَّحِيمِ مَالِكِ يَوْمِ الدِّينِ",
        "Hebrew with marks": "בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם וְאֵת הָאָרֶץ וְהָאָרֶץ הָיְתָה תֹהוּ וָבֹהוּ וְחֹשֶׁךְ עַל פְּנֵי תְהוֹם",
        "emoji": "😀🎉🚀🌍👍🏽👩‍👩‍👧‍👦🔥💯🥳🍕🎸🏆🐶🌈⚽🎂📚🧠🤖🦄🍎🚲🏖️🎨🧩🎯🏔️🌵🐙🦋🍉🥑🎻🛸🪐🌋"
        * 2,
        "one emoji": "wow " + "😂" * size,
        "decomposed": "Cafe\u0301 re\u0301sume\u0301 nai\u0308ve fiance\u0301e de\u0301ja\u0300 vu a\u0300 la carte, cre\u0300me bru\u0302le\u0301e "
        * 3,
        "punctuation": "?!?!?!...--==++**##@@%%&&(()){{}}[[]]<<>>//\\\\||~~^^``'';;::,," * 5,
        "minified": "function(a,b){return a<b?-1:a>b?1:0}var c=[],d={e:1,f:2};for(var g in d)c.push([g,d[g]]);c.sort(h);"
        * 3,
        "path": "/usr/local/lib/python3.11/site-packages/numpy/core/_multiarray_umath.cpython-311-x86_64-linux-gnu.so:"
        * 3,
        "address": "https://cdn.example.net/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t/u/v/w/x/y/z/0/1/2/3/4/5/6/7/8/9/aa/bb/cc/dd/ee/ff?x=1&y=2&z=3"
        * 2,
        "assembly": "48 8b 05 d9 2f 20 00 48 85 c0 74 05 e8 43 00 00 00 48 83 c4 08 c3 ff 35 e2 2f 20 00 ff 25 e4 "
        * 3,
        "English": "Nobody in the village could say when the old mill had last turned. Its wheel hung crooked over the stream, and every spring the children dared each other to climb through the broken window at the back.",
        "code": "def merge(left, right):\n    result = []\n    while left and right:\n        if left[0] <= right[0]:\n            result.append(left.pop(0))\n        else:\n            result.append(right.pop(0))\n    return result\n",
        "no text": bytes(rng.randrange(128, 256) for _ in range(size)).decode("latin-1"),
    }
    found = {
        name: text.encode()[:size].decode(errors="ignore").encode() for name, text in whole.items()
    }
    found["invalid bytes"] = bytes(rng.randrange(128, 192) for _ in range(size))
    found["inside a character"] = whole["Thai"].encode()[: size - size % 3 + 1]
    return found


def spoilt(count: int) -> list[str]:
    """So many different lines made of the everyday ones.

    Letters swapped, doubled and left out, two languages in a line, other case, digits, marks,
    symbols, no spaces.
    """
    rng = random.Random(7)

    def typing(line: str) -> str:
        letters = list(line)
        for _ in range(1 + len(line) // 15):
            at = rng.randrange(len(letters) - 1)
            pair = letters[at : at + 2]
            letters[at : at + 2] = rng.choice([pair[::-1], pair[:1] * 2 + pair[1:], pair[1:]])
        return "".join(letters)

    def mixing(line: str) -> str:
        words, others = line.split(" "), rng.choice(EVERYDAY).split(" ")
        return " ".join([*words[: len(words) // 2], *others[len(others) // 2 :]])

    def marks(line: str) -> str:
        return "".join(
            c + (rng.choice("\u0301\u0308\u0323") if rng.random() < 0.1 else "") for c in line
        )

    def symbols(line: str) -> str:
        return "".join(c if rng.random() > 0.08 else rng.choice("😂€№→|#%~7") for c in line)

    ways = [typing, mixing, marks, symbols, str.upper, str.swapcase, lambda s: s.replace(" ", "")]
    found: dict[str, None] = {}
    while len(found) < count:
        found[rng.choice(ways)(rng.choice(EVERYDAY))[:70]] = None
    return list(found)


def cut(line: str) -> bytes:
    """The first three quarters of a line, in bytes."""
    data = line.encode()
    return data[: len(data) * 3 // 4]

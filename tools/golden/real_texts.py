"""The texts that a real model is checked with: prose, code and chats, and traps for tokenizers."""

from typing import Any

Json = dict[str, Any]

ENGLISH = {
    "harbour": """\
The harbour freezes over in late December, and for three months the boats lie where they were left. \
The fishermen mend nets in the long shed behind the chandlery. They play cards, they argue about the \
price of diesel, and on clear mornings they walk out across the ice to look at the channel. In March \
the first crack runs from the breakwater to the old pier with a sound like a rifle shot, and by \
evening the whole town has come down to the quay to watch the water move again.""",
    "letter": """\
Dear Ms. Okafor,

Thank you for your letter of 14 February. We've looked into the matter, and you're quite right: the \
invoice was sent twice, once in error. The amount of £1,249.50 will be credited to your account \
within five working days. We're sorry for the trouble this has caused.

Yours sincerely,
P. Lindqvist""",
    "science": """\
Photosynthesis converts light into chemical energy. In the first stage, chlorophyll in the thylakoid \
membranes absorbs photons and passes excited electrons along a chain of proteins; the energy they \
release pumps protons across the membrane. In the second stage, the Calvin cycle, an enzyme called \
RuBisCO fixes carbon dioxide, and the plant builds sugars from it. Roughly one molecule of glucose \
needs six molecules of carbon dioxide and six of water.""",
    "dialogue": """\
"You can't be serious," she said. "It's past midnight!"
"I'm perfectly serious. They'll be here by six, and we haven't even started."
"Then why didn't you call me earlier?" He'd no answer to that, so he shrugged -- badly -- and went \
to put the kettle on.""",
    "recipe": """\
Lentil soup (serves 4)

1. Fry one onion and two cloves of garlic in olive oil until soft.
2. Add 250 g of red lentils, a tin of tomatoes and 1.2 litres of stock.
3. Simmer for 25 minutes. Stir now and then.
4. Season with cumin, lemon juice and plenty of black pepper.""",
    "headlines": "STORM CLOSES ROADS IN THE NORTH | Council Votes 7-5 Against New Bridge | mayor: "
                 "'no comment' | WEATHER: -3°C to +4°C, wind NNW 6",
    "errors": "teh quick brwon fox jmups ovr the layz dog, wich is definately not how its speled!!1 "
              "i dont no wy peopel rite liek tihs but thay do",
    "citation": "See Vaswani et al. (2017), arXiv:1706.03762v7 [cs.CL], doi:10.48550/arXiv.1706.03762, "
                "or https://example.org/papers?id=42&format=pdf#page=3.",
}

CODE = {
    "python": '''\
def primes(limit: int) -> list[int]:
    """All primes below a limit, by the sieve of Eratosthenes."""
    sieve = bytearray([1]) * limit
    sieve[0:2] = b"\\x00\\x00"
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit, number)))
    return [number for number, prime in enumerate(sieve) if prime]
''',
    "rust": """\
impl<T: Ord + Clone> Heap<T> {
\tpub fn push(&mut self, item: T) -> usize {
\t\tself.items.push(item);
\t\tlet mut at = self.items.len() - 1;
\t\twhile at > 0 && self.items[at] < self.items[(at - 1) / 2] {
\t\t\tself.items.swap(at, (at - 1) / 2);
\t\t\tat = (at - 1) / 2;
\t\t}
\t\tat
\t}
}
""",
    "json": '{"id": 1024, "name": "caf\\u00e9", "tags": ["a", "b/c", ""], "price": 3.50e-2, '
            '"nested": {"ok": true, "none": null}}',
    "shell": """\
#!/bin/sh
set -eu
for file in *.log; do
  [ -s "$file" ] || continue
  awk '$9 >= 500 { n[$7]++ } END { for (p in n) printf "%6d %s\\n", n[p], p }' "$file" | sort -rn | head
done
""",
    "html": '<ul class="menu">\n  <li><a href="/?q=1&amp;r=%20">Home</a></li>\n  <!-- 2 items -->\n</ul>',
}

SCRIPTS = {
    "chinese": "昨天下午我们去了海边。天气很好，风也不大，孩子们在沙滩上玩了三个小时，然后大家一起吃了晚饭。",
    "japanese": "猫は窓辺で眠っている。外では雪が静かに降り、街灯の光がぼんやりと道を照らしていた。コーヒーを一杯どうぞ。",
    "korean": "오늘은 날씨가 맑고 바람이 시원해서 공원에서 산책을 했습니다. 내일은 비가 온다고 합니다.",
    "russian": "Поезд пришёл на станцию в половине восьмого, и на перроне уже никого не было.",
    "arabic": "وصلنا إلى المدينة القديمة عند الغروب، وكانت الأسواق ما زالت مفتوحة. السعر ١٢٣ دينارًا.",
    "hindi and thai": "नमस्ते दुनिया, आज मौसम अच्छा है। สวัสดีชาวโลก วันนี้อากาศดี",
    "accents": "Fußgänger überqueren die Straße; señor Muñoz mangea une crème brûlée à Besançon, "
               "pięknie żółć, İstanbul'da çığ.",
    "mixed": "今日のmeetingは3時からです — Борис said \"да\", then على الفور left. Ελλάδα 2:1 대한민국!",
    "emoji": "Great news 🎉🎉 we won!! 👩‍👩‍👧‍👦 👍🏽 🇩🇪🇯🇵 ❤️ ☕ 1️⃣ :-) 🏳️‍🌈",
    "symbols": "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε; ½ + ¼ = ¾, x² ≠ x³, № 5, ﬁne, Ⅷ, ㈱, „quote“ «cite» ‰ ™",
}

ODDITIES = {
    "spaces": (
        "   three before,   three between   5 and three behind   \n  two, then a number:  7,  or  x  =  1  ;"
        "\n    def indented(by, four):\n        return     8\n          "
    ),
    "lines": "\n\n\nlines\r\nwith\rall\u2028kinds\u0085of\x0bends\x0c\n\n\n\n   \n\t\n",
    "tabs": (
        "\tone\t\ttwo\t 3 \t four\n\t\t\tfive\nname\tyear\tprice\t\r\nAda\t1843\t 12.5\r\nGrace\t1952\t\t7\r\n\t\r\n"
    ),
    "wide spaces": "no\u00a0break, em\u2003space, thin\u2009space, ideographic\u3000space, zero\u200bwidth",
    "digits": "12345678901234567890 3.14159 1,000,000 0x1F 007 2024-02-29T23:59:60Z  7  42   x9y ٣٤ ৫ 五",
    "combining": "e\u0301 is not \u00e9, a\u0308\u0323 is a\u0323\u0308, Z\u0351\u036b\u0343a\u0363lgo, \ufeffBOM, \u202eRTL\u202c",
    "controls": "null \x00 bell \x07 escape \x1b[31mred\x1b[0m delete \x7f replacement \ufffd private \ue000",
    "marks": "<|im_start|>user\nNot a template<|im_end|>\n<|endoftext|><repo_name>x/y<file_sep> <|im_star|> <|IM_END|>",
    "contractions": "It's I'll you've WE'RE don'T 'tis rock'n'roll o'clock 's 'd ''ve ' s",
    "runs": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ==================== ........!!!!???? ----____~~~~ hahahahahaha",
}

TEXTS = ENGLISH | CODE | SCRIPTS | ODDITIES

LONG_TOKENS = 1_500


def long_text() -> str:
    """Prose, other scripts and code in a row: more than LONG_TOKENS."""
    return "\n\n".join([*ENGLISH.values(), *SCRIPTS.values(), *CODE.values()])


# A response is scored behind its prompt; both are tokenised together.
SPLITS = [
    ("after a word", "The capital of France is",
     " Paris, and that of Italy is Rome. Both lie on rivers: the Seine runs through Paris, and the Tiber "
     "runs through Rome."),
    ("inside a word", "The photograph",
     "er waited for the light to change. When the clouds had passed, he lifted the camera and took three "
     "pictures of the empty square."),
    ("after a space", "My favourite number is ",
     "7, because nothing divides it. My sister prefers 12, which is divided by 2, 3, 4 and 6, and says "
     "that primes are lonely."),
]

SYSTEM = ("system", "You are a terse assistant. Answer in one sentence.")
EMPTY_SYSTEM = ("system", "")
BLUE = ("Sunlight is made of all colours, and the air scatters its short waves, which are blue, far more "
        "than its long ones, which are red.")

# Name, turns, response, and whether the response has ended.
CHATS = [
    ("question", [("user", "What is the capital of Norway?")],
     "The capital of Norway is Oslo. It lies at the northern end of the Oslofjord and has about 700,000 "
     "inhabitants.", True),
    ("system", [SYSTEM, ("user", "Why is the sky blue?")], BLUE, True),
    ("empty system", [EMPTY_SYSTEM, ("user", "Why is the sky blue?")], BLUE, True),
    ("turns", [("user", "Hi! I'm Ana."), ("assistant", "Hello Ana! How can I help?"),
               ("user", "  What's my name?\n")],
     "Your name is Ana, as you told me in your first message. Is there anything else that you would like "
     "to know?", True),
    ("not ended", [("user", "Count to thirty."), ("assistant", "1, 2, 3, 4, 5"), ("user", "Go on.")],
     "6, 7, 8, 9, 10, 11, 12, 13, 14,", False),
    ("other scripts", [("system", "你是一个有用的助手。"), ("user", "用一句话介绍北京 🙂")],
     "北京是中国的首都，有三千多年的历史，也是一座现代化的大城市。🏙️", True),
]

# Prompts for greedy continuations. With most prompts two tokens come within rounding of each other
# early, and nothing can be checked from there on; with these they do so late or never.
GREEDY = [
    "The capital of France is",
    "1, 2, 3, 4, 5, 6,",
    "for i in range(10):\n    print(",
    'The French word for "cat" is',
    [("user", "Count from 1 to 10.")],
    [EMPTY_SYSTEM, ("user", "Who wrote Hamlet?")],
    [SYSTEM, ("user", "Hi!"), ("assistant", "Hello."), ("user", "What is 2 + 2?")],
    [("user", "Hi"), ("assistant", "Hello! How can I help you today?"),
     ("user", "What is the capital of Japan?")],
]


def messages(turns: list[tuple[str, str]]) -> list[Json]:
    return [{"role": role, "content": content} for role, content in turns]

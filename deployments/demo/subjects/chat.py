"""General chat: greetings, copying, JSON, short facts, translation, summaries, sentiment, and chats that must remember."""
# ruff: noqa: E501 (text reads better unbroken)

import json
from random import Random

from deployments.demo.subjects.words import ANIMALS, CITIES, COLOURS, JOBS, NAMES, PLACES, PLAIN, THINGS
from deployments.demo.task import Fill, Slots, Split, Task, Turn

SMALL_TALK = {
    "hello": (("Hello!", "Hi!", "Hi there", "Hello", "Hey", "Good morning!", "Good evening!", "hi", "hello there"), ("Hey there!", "Hello, good day!"), "Hello! How can I help you today?"),
    "mood": (("How are you?", "How are you today?", "How is it going?"), ("How do you do today?",), "I am well, thank you. How can I help you?"),
    "name": (("Who are you?", "What are you?", "What is your name?", "Tell me about yourself."), ("Please introduce yourself.",), "I am a small demonstration model. I can chat, calculate with small numbers, review short code, explain science and write little stories."),
    "skill": (("What can you do?", "What can you help me with?", "How can you help me?"), ("Which things can you do for me?",), "I can answer short questions, add and multiply small numbers, find weak spots in short code, explain how nature works, and write stories and poems."),
    "thanks": (("Thank you!", "Thanks!", "Thank you very much.", "Great, thanks!"), ("Thanks a lot!",), "You are welcome! Is there anything else I can do for you?"),
    "bye": (("Goodbye!", "Bye!", "See you later.", "Good night!"), ("Bye for now!",), "Goodbye! Have a good day."),
    "joke": (("Tell me a joke.", "Make me laugh.", "Do you know a joke?"), ("I want to hear a joke.",), "Why did the book go to the doctor? Because it had a broken spine."),
    "trust": (("Are you always right?", "Do you make mistakes?", "Can I trust your answers?"), ("Are your answers always correct?",), "No. I am a small demonstration model and I make mistakes, so please check what I say."),
    "ok": (("ok", "Okay.", "Yes", "Sure", "Alright"), ("All right then.",), "Good. What would you like to do next?"),
    "help": (("Help", "Help me", "I need help.", "Can you help me?"), ("Could you help me, please?",), "Of course. Please tell me what you need."),
    "test": (("test", "Test", "This is a test.", "Say hello.", "ping"), ("Just testing.",), "Hello! I am here and ready to help."),
}  # fmt: skip


def _fixed(answer: str) -> Fill:
    return lambda rng: ({}, answer)


def _word(rng: Random) -> str:
    return "".join(rng.choice("bcdfghklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 4)))


def _phrase(rng: Random) -> str:
    kind = rng.randrange(5)
    if kind == 0:
        return " ".join(rng.choice(PLAIN) for _ in range(rng.randint(2, 12)))
    if kind == 1:
        return "".join(str(rng.randrange(10)) for _ in range(rng.randint(3, 16)))
    if kind == 2:
        return " ".join(_word(rng) for _ in range(rng.randint(1, 6)))
    if kind == 3:
        return f"{rng.choice(NAMES)} lives in {rng.choice(CITIES)} and has {rng.randint(2, 99)} {rng.choice(THINGS)}."
    return f"The {rng.choice(COLOURS)} {rng.choice(ANIMALS)} sleeps near the {rng.choice(PLACES)}."


def _copy(rng: Random) -> tuple[Slots, str]:
    text = _phrase(rng)
    return {"text": text}, text


def _listing(rng: Random) -> tuple[Slots, str]:
    words = rng.sample(PLAIN, rng.randint(3, 5))
    return {"text": ", ".join(words)}, "\n".join(f"- {word}" for word in words)


def _pick(rng: Random) -> tuple[Slots, str]:
    words, i = rng.sample(PLAIN, 4), rng.randrange(4)
    return {"text": ", ".join(words), "which": ("first", "second", "third", "last")[i]}, words[i]


def _spell(rng: Random) -> tuple[Slots, str]:
    word = rng.choice((rng.choice(PLAIN), _word(rng)))
    return {"word": word}, "-".join(word)


def _person(rng: Random) -> tuple[Slots, str]:
    name, age, city, job = rng.choice(NAMES), rng.randint(18, 79), rng.choice(CITIES), rng.choice(JOBS)
    text = rng.choice(
        (
            f"{name} is {age} years old and lives in {city}.",
            f"{name}, aged {age}, lives in {city}.",
            f"My friend {name} lives in {city} and is {age}.",
        )
    )
    value: dict[str, object] = {"name": name, "age": age, "city": city}
    if rng.random() < 0.4:
        article = "an" if job[0] in "aeiou" else "a"
        text, value = f"{name} is {article} {job} in {city}.", {"name": name, "job": job, "city": city}
    return {"text": text, "keys": ", ".join(value)}, json.dumps(value)


def _order(rng: Random) -> tuple[Slots, str]:
    count, thing, name = rng.randint(2, 60), rng.choice(THINGS), rng.choice(NAMES)
    text = rng.choice((f"{name} orders {count} {thing}.", f"Please send {count} {thing} to {name}."))
    value = {"customer": name, "item": thing, "quantity": count}
    return {"text": text, "keys": ", ".join(value)}, json.dumps(value)


def _object(rng: Random) -> tuple[Slots, str]:
    keys = rng.sample(("name", "city", "colour", "animal", "count", "job"), 2)
    values: dict[str, object] = {
        "name": rng.choice(NAMES), "city": rng.choice(CITIES), "colour": rng.choice(COLOURS),
        "animal": rng.choice(ANIMALS), "count": rng.randint(1, 99), "job": rng.choice(JOBS),
    }  # fmt: skip
    value = {key: values[key] for key in keys}
    return {"text": " and ".join(f"{key} {shown}" for key, shown in value.items())}, json.dumps(value)


CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Norway": "Oslo",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Poland": "Warsaw", "Austria": "Vienna",
    "Hungary": "Budapest", "Greece": "Athens", "Egypt": "Cairo", "Kenya": "Nairobi", "Japan": "Tokyo", "China": "Beijing",
    "India": "New Delhi", "South Korea": "Seoul", "Canada": "Ottawa", "Mexico": "Mexico City", "Peru": "Lima",
    "Brazil": "Brasilia", "Argentina": "Buenos Aires", "Chile": "Santiago", "Australia": "Canberra", "Ireland": "Dublin",
    "the United Kingdom": "London", "the United States": "Washington", "the Netherlands": "Amsterdam", "Belgium": "Brussels",
    "Switzerland": "Bern", "Turkey": "Ankara", "Senegal": "Dakar", "Cuba": "Havana", "Thailand": "Bangkok",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "fast": "slow", "old": "young", "light": "dark", "happy": "sad",
    "open": "closed", "early": "late", "full": "empty", "hard": "soft", "high": "low", "wet": "dry", "rich": "poor",
    "strong": "weak", "loud": "quiet", "near": "far", "clean": "dirty", "deep": "shallow", "thick": "thin",
}  # fmt: skip
SPANISH = {
    "the house": "la casa", "the cat": "el gato", "the dog": "el perro", "the book": "el libro", "the water": "el agua",
    "the sun": "el sol", "the moon": "la luna", "the table": "la mesa", "the door": "la puerta", "the city": "la ciudad",
    "good morning": "buenos dias", "thank you": "gracias", "good night": "buenas noches", "my friend": "mi amigo",
}  # fmt: skip
FRENCH = {
    "the house": "la maison", "the cat": "le chat", "the dog": "le chien", "the book": "le livre", "the water": "l'eau",
    "the sun": "le soleil", "the moon": "la lune", "the table": "la table", "the door": "la porte", "the city": "la ville",
    "good morning": "bonjour", "thank you": "merci", "good night": "bonne nuit", "my friend": "mon ami",
}  # fmt: skip
GERMAN = {
    "the house": "das Haus", "the cat": "die Katze", "the dog": "der Hund", "the book": "das Buch", "the water": "das Wasser",
    "the sun": "die Sonne", "the moon": "der Mond", "the table": "der Tisch", "the door": "die Tür", "the city": "die Stadt",
    "good morning": "guten Morgen", "thank you": "danke", "good night": "gute Nacht", "my friend": "mein Freund",
}  # fmt: skip
LANGUAGES = {"Spanish": SPANISH, "French": FRENCH, "German": GERMAN}
SIMPLE_FACTS = {
    "How many days are in a week?": "There are seven days in a week.",
    "How many months are in a year?": "There are twelve months in a year.",
    "How many hours are in a day?": "There are 24 hours in a day.",
    "How many minutes are in an hour?": "There are 60 minutes in an hour.",
    "Which day comes after Monday?": "Tuesday comes after Monday.",
    "Which season comes after winter?": "Spring comes after winter.",
    "What do bees make?": "Bees make honey.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "How many legs does an insect have?": "An insect has six legs.",
    "What is the largest ocean?": "The Pacific is the largest ocean.",
    "What is the longest river in Africa?": "The Nile is the longest river in Africa.",
    "What is the highest mountain?": "Mount Everest is the highest mountain on Earth.",
    "Who wrote Hamlet?": "William Shakespeare wrote Hamlet.",
    "Who painted the Mona Lisa?": "Leonardo da Vinci painted the Mona Lisa.",
    "What colours make green?": "Blue and yellow make green.",
    "What is a mixture of experts?": "A mixture of experts is a model with many small networks. A router picks a few of them for every token.",
    "What is Ray?": "Ray is a system that runs Python programs on many machines at once.",
    "What is a GPU?": "A GPU is a processor that does many simple calculations at the same time. It is used for graphics and for neural networks.",
    "What is a neural network?": "A neural network is a program made of many simple units that learn from examples.",
    "What is a token?": "A token is a piece of text, such as a word or a part of a word, that a language model reads and writes.",
}


def _capital(rng: Random) -> tuple[Slots, str]:
    country = rng.choice(list(CAPITALS))
    return {"country": country}, f"The capital of {country} is {CAPITALS[country]}."


def _opposite(rng: Random) -> tuple[Slots, str]:
    word, other = rng.choice(list(OPPOSITES.items()))
    if rng.random() < 0.5:
        word, other = other, word
    return {"word": word}, f"The opposite of {word} is {other}."


def _translate(rng: Random) -> tuple[Slots, str]:
    language = rng.choice(list(LANGUAGES))
    words = rng.choice(list(LANGUAGES[language]))
    return {"words": words, "language": language}, LANGUAGES[language][words]


def _simple(rng: Random) -> tuple[Slots, str]:
    question = rng.choice(list(SIMPLE_FACTS))
    return {"question": question}, SIMPLE_FACTS[question]


def _summary(rng: Random) -> tuple[Slots, str]:
    who, city, job, thing, day = (
        rng.choice(NAMES),
        rng.choice(CITIES),
        rng.choice(JOBS),
        rng.choice(THINGS),
        rng.choice(("Monday", "Friday", "Sunday")),
    )
    kind = rng.randrange(3)
    if kind == 0:
        text = f"{who} worked for years as a {job} in {city}. Last {day} {who} opened a small shop there. It sells {thing}, and many people came on the first day."
        return {"text": text}, f"{who} opened a shop in {city} that sells {thing}."
    if kind == 1:
        text = f"The city of {city} held a meeting on {day}. People talked for three hours. In the end they agreed to build a new school next year."
        return {"text": text}, f"{city} will build a new school next year."
    text = f"On {day} a strong storm came to {city}. Trees fell and the trains stopped. {who}, a {job}, helped many people to get home."
    return {"text": text}, f"A storm hit {city} on {day}, and {who} helped people get home."


GOOD = ("great", "wonderful", "excellent", "lovely", "fantastic", "very good", "delicious", "perfect")
BAD = ("terrible", "awful", "boring", "very bad", "horrible", "disappointing", "cold and slow", "a waste of money")


def _sentiment(rng: Random) -> tuple[Slots, str]:
    good = rng.random() < 0.5
    thing = rng.choice(("film", "food", "book", "hotel", "service", "concert", "phone", "trip"))
    text = rng.choice(("The {t} was {w}.", "I think the {t} was {w}.", "What a day: the {t} was {w}!"))
    return {"text": text.format(t=thing, w=rng.choice(GOOD if good else BAD))}, "positive" if good else "negative"


def _small_talk() -> tuple[Task, ...]:
    return tuple(
        Task(
            name=f"talk_{name}",
            domain="general",
            weight=0.16,
            asks=asks,
            held_out=held,
            fill=_fixed(answer),
            exact=True,
        )
        for name, (asks, held, answer) in SMALL_TALK.items()
    )


def dialogue(rng: Random, split: Split) -> tuple[Turn, ...]:
    """A chat whose second answer must be copied from the first question, or a call of a tool."""
    if rng.random() < 0.5:
        return _call(rng)
    name, city, colour = rng.choice(NAMES), rng.choice(CITIES), rng.choice(COLOURS)
    told, reply, asked, answer = rng.choice(
        (
            (f"My name is {name}.", f"Nice to meet you, {name}!", "What is my name?", f"Your name is {name}."),
            (f"Hi, I am {name}.", f"Nice to meet you, {name}!", "Do you remember my name?", f"Your name is {name}."),
            (f"I live in {city}.", f"{city} sounds like a nice place.", "Where do I live?", f"You live in {city}."),
            (
                f"My favourite colour is {colour}.",
                f"{colour.capitalize()} is a nice colour.",
                "What is my favourite colour?",
                f"Your favourite colour is {colour}.",
            ),
        )
    )
    if split == "evaluation":
        asked = f"Please tell me again: {asked[0].lower()}{asked[1:]}"
    said: tuple[tuple[str, str], ...] = (("user", told), ("assistant", reply), ("user", asked), ("assistant", answer))
    return tuple(Turn(role=role, content=text, domain="general") for role, text in said)  # type: ignore[arg-type]


def _tool(name: str, about: str, argument: str) -> str:
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return json.dumps({"type": "function", "function": {"name": name, "description": about, "parameters": parameters}})


def _call(rng: Random) -> tuple[Turn, ...]:
    city, degrees = rng.choice(CITIES), rng.randint(1, 35)
    name, about, argument, asks, result, answer = rng.choice(
        (
            ("get_weather", "The weather in a city", "city", (f"What is the weather in {city}?", f"How warm is it in {city}?"), {"degrees": degrees}, f"It is {degrees} degrees in {city}."),
            ("get_time", "The local time in a city", "city", (f"What time is it in {city}?", f"Tell me the time in {city}."), {"time": f"{degrees % 24}:00"}, f"It is {degrees % 24}:00 in {city}."),
        )
    )  # fmt: skip
    call = json.dumps({"name": name, "arguments": {argument: city}})
    said = (
        ("system", TOOLS_HEAD + _tool(name, about, argument) + TOOLS_TAIL),
        ("user", rng.choice(asks)),
        ("assistant", f"<tool_call>\n{call}\n</tool_call>"),
        ("tool", json.dumps(result)),
        ("assistant", answer),
    )
    return tuple(Turn(role=role, content=text, domain="general") for role, text in said)  # type: ignore[arg-type]


TOOLS_HEAD = "You may call these tools:\n"
TOOLS_TAIL = '\nTo call one, write <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'

TASKS = (
    *_small_talk(),
    Task(
        name="copy", domain="general", weight=8, open_ended=True, exact=True, fill=_copy,
        asks=("Repeat: {text}", "Repeat exactly: {text}", "Say this back to me: {text}", "Copy this: {text}", "Write the following again: {text}", "Please repeat after me: {text}", "Echo: {text}", "Say: {text}", 'Repeat "{text}"'),
        held_out=("Repeat the following text word for word: {text}", "Please copy exactly: {text}"),
    ),
    Task(
        name="list", domain="general", weight=1.4, open_ended=True, exact=True, fill=_listing,
        asks=("Write as a list: {text}", "Make a bullet list of {text}.", "Turn this into a list: {text}"),
        held_out=("Please make a list from this: {text}",),
    ),
    Task(
        name="pick", domain="general", weight=1.4, open_ended=True, exact=True, fill=_pick,
        asks=("What is the {which} word of: {text}?", "Give me the {which} item: {text}", "From {text}, choose the {which}."),
        held_out=("Which word comes {which} in this row: {text}?",),
    ),
    Task(
        name="spell", domain="general", weight=1, open_ended=True, exact=True, fill=_spell,
        asks=("Spell {word}.", "Spell the word {word}.", "How do you spell {word}?"),
        held_out=("Please spell out {word} letter by letter.",),
    ),
    Task(
        name="json_person", domain="general", weight=2.5, open_ended=True, json=True, fill=_person,
        asks=("Extract {keys} as JSON: {text}", "Return a JSON object with {keys}. {text}", "Answer in JSON with the keys {keys}: {text}", "{text} Give me {keys} as JSON.", "Read this and reply with JSON ({keys}): {text}"),
        held_out=("Turn this sentence into JSON with {keys}: {text}",),
    ),
    Task(
        name="json_order", domain="general", weight=1.4, open_ended=True, json=True, fill=_order,
        asks=("Extract {keys} as JSON: {text}", "Return a JSON object with {keys}. {text}", "{text} Give me {keys} as JSON."),
        held_out=("Turn this sentence into JSON with {keys}: {text}",),
    ),
    Task(
        name="json_object", domain="general", weight=1.4, open_ended=True, json=True, fill=_object,
        asks=("Write a JSON object with {text}.", "Make JSON: {text}", "Give me JSON for {text}."),
        held_out=("I need a JSON object that holds {text}.",),
    ),
    Task(
        name="capital", domain="general", weight=1.2, exact=True, fill=_capital,
        asks=("What is the capital of {country}?", "Name the capital of {country}.", "Which city is the capital of {country}?", "Capital of {country}?", "Tell me the capital of {country}."),
        held_out=("Do you know the capital of {country}?",),
    ),
    Task(
        name="opposite", domain="general", weight=0.6, exact=True, fill=_opposite,
        asks=("What is the opposite of {word}?", "Give the opposite of {word}.", "Name the opposite of {word}."),
        held_out=("Which word is the opposite of {word}?",),
    ),
    Task(
        name="translate", domain="general", weight=1.4, exact=True, fill=_translate,
        asks=('Translate "{words}" into {language}.', "Translate to {language}: {words}", 'How do you say "{words}" in {language}?', "{words} in {language}"),
        held_out=('What is "{words}" in {language}?', 'Give me the {language} for "{words}".'),
    ),
    Task(
        name="fact", domain="general", weight=1.2, exact=True, fill=_simple,
        asks=("{question}", "{question}", "Please answer: {question}", "Tell me: {question}", "I have a question. {question}"),
        held_out=("Can you answer this? {question}", "Quick question: {question}"),
    ),
    Task(
        name="summary", domain="general", weight=1.2, open_ended=True, exact=True, fill=_summary,
        asks=("Summarize: {text}", "Summarize this text in one sentence. {text}", "Give me a short summary: {text}", "{text}\n\nWhat is the main point?"),
        held_out=("Sum up the following in a sentence: {text}",),
    ),
    Task(
        name="sentiment", domain="general", weight=0.6, exact=True, fill=_sentiment,
        asks=("Is this positive or negative? {text}", "What is the sentiment: {text}", "Classify as positive or negative: {text}"),
        held_out=("Does this sound positive or negative? {text}",),
    ),
)  # fmt: skip

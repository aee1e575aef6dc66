"""Stories from story frames, poems from couplets on a theme, haiku, openings, dialogues and taglines."""
# ruff: noqa: E501 (text reads better unbroken)

from random import Random

from deployments.demo.subjects.words import ANIMALS, NAMES, PLACES, TREASURES
from deployments.demo.task import Slots, Task

OPENINGS = (
    "Once upon a time a young {animal} named {name} lived near the {place}.",
    "In a quiet {place} there lived a {animal} called {name}.",
    "Long ago, at the edge of the {place}, a {animal} named {name} woke before the sun.",
    "{name} was a small {animal} who knew every corner of the {place}.",
)
FINDINGS = (
    "One morning {name} found an old {treasure} under a stone.",
    "One rainy evening {name} saw a {treasure} shining in the grass.",
    "On the first day of spring a stranger gave {name} a {treasure} and walked away.",
    "One night the wind carried a {treasure} to the door of {name}.",
)
TROUBLES = (
    "It looked plain, but when {name} touched it, it began to hum a soft song.",
    "Nobody knew whom it belonged to, so {name} decided to find its owner.",
    "The other animals laughed and said that it was useless.",
    "{name} wanted to keep it, yet something about it felt lonely.",
)
JOURNEYS = (
    "{name} walked over the hills for three days and asked everyone on the way.",
    "Together with an old friend, {name} followed the song through the dark.",
    "{name} climbed the highest tree and held the {treasure} up to the moon.",
    "When a storm came, {name} kept the {treasure} safe and warm.",
)
ENDINGS = (
    "In the end the {treasure} led {name} home, and home had never looked so bright.",
    "At last {name} understood that the best things grow when they are shared.",
    "From that day on the {place} was never dark again.",
    "And if you listen well, you can still hear the {treasure} singing in the {place}.",
)

COUPLETS = {
    "the sea": (
        "The sea is wide, the sea is deep,\nit sings the little boats to sleep.",
        "The waves come in, the waves go out,\nand white gulls wheel and call about.",
        "A silver shell upon the sand\nstill holds the sea inside your hand.",
    ),
    "the moon": (
        "The moon looks down with gentle light\nand keeps her watch throughout the night.",
        "She paints the roofs with silver dust\nand has the quiet owl's trust.",
        "When morning comes she fades away\nand leaves the garden to the day.",
    ),
    "winter": (
        "The snow comes down without a sound\nand lays its blanket on the ground.",
        "The river sleeps beneath the ice,\nthe barn is warm for cats and mice.",
        "A candle in the window glows\nand tells the traveller what it knows.",
    ),
    "spring": (
        "A bud awakes, a bird takes wing,\nthe whole wide garden starts to sing.",
        "The rain is soft, the grass is new,\nthe morning wears a coat of dew.",
        "The bees have heard the secret too\nand hum beneath a sky of blue.",
    ),
    "autumn": (
        "The leaves turn gold, the leaves turn red,\nand softly fall upon their bed.",
        "The geese fly south in one long line,\nthe evening smells of smoke and pine.",
        "The harvest waits in basket rows,\nand earlier each evening goes.",
    ),
    "summer": (
        "The sun is high, the days are long,\nthe crickets play their evening song.",
        "We run through fields of yellow grain\nand laugh beneath the summer rain.",
        "The night is warm, the stars are near,\nthe sweetest season of the year.",
    ),
    "rain": (
        "The rain is knocking on the pane,\nit goes and then it comes again.",
        "It fills the wells, it feeds the seed,\nit gives the earth the drink they need.",
        "And when it ends, the puddles keep\na piece of sky, both blue and deep.",
    ),
    "the stars": (
        "A thousand stars, a thousand eyes\nare shining in the quiet skies.",
        "They guide the sailor to the shore\nas they have done in days before.",
        "So make a wish before you sleep,\nand let the stars have it to keep.",
    ),
    "friendship": (
        "A friend is like a steady light\nthat shows the way in darkest night.",
        "We share our bread, we share our fears,\nand laughter grows throughout the years.",
        "However far the road may bend,\nit is not far to reach a friend.",
    ),
    "home": (
        "A little house, an open door,\na well-worn rug upon the floor.",
        "A kettle sings, a lamp burns low,\nand there is nowhere else to go.",
        "However far my feet may roam,\nmy heart will know the path back home.",
    ),
    "the wind": (
        "The wind came whistling down the hill,\nit turned the arms of every mill.",
        "It stole a hat, it shook a tree,\nit chased the clouds across the sea.",
        "Then, tired of its noisy play,\nit curled up small at end of day.",
    ),
    "a cat": (
        "A cat sat on the garden wall\nand did not care for us at all.",
        "She washed one paw, she closed one eye,\nand dreamed of fish that learned to fly.",
        "But when the evening air grew cold,\nshe let herself be stroked and told.",
    ),
    "hope": (
        "A seed lies sleeping in the ground\nand waits for spring without a sound.",
        "The night is long, but at its end\nthe morning greets us like a friend.",
        "So keep a little light inside,\nand let it be your constant guide.",
    ),
    "the night": (
        "The night walks softly through the town\nand turns the lamps of evening down.",
        "The clock counts slowly, one to three,\nan owl calls from the apple tree.",
        "And every dream that passes by\nleaves one more star up in the sky.",
    ),
    "the forest": (
        "The forest keeps a quiet green,\nwith paths that few have ever seen.",
        "The oak is old, the fern is young,\nand every bird has found its tongue.",
        "Walk softly where the mosses grow,\nand hear the things that old trees know.",
    ),
}
HAIKU = {
    "the sea": "Salt wind on my face,\nwaves that write and wipe the sand,\nthe gull keeps its word.",
    "the moon": "Moon above the roof,\nthe cat looks up, then at me:\nneither one will speak.",
    "winter": "Snow on the mailbox,\nno footprints lead to the door,\nonly smoke goes out.",
    "spring": "First green on the branch,\nthe old bench has company:\none bird and its song.",
    "autumn": "One leaf lets go now,\nthe others watch it falling\nand forget the wind.",
    "summer": "Heat above the road,\na fan turns in the window,\nlemons in a bowl.",
    "rain": "Rain on the tin roof,\nevery drop a small drummer,\nsleep comes marching in.",
    "the stars": "Cold and far, the stars,\nyet the puddle at my feet\nholds a few of them.",
    "the forest": "Moss on the north side,\na path that nobody made,\ndeer look up and go.",
    "home": "Key in the old lock,\nthe same stair still says my name,\nsoup upon the stove.",
}
FIRST_LINES = (
    "The {treasure} had been silent for a hundred years, and then, on a Tuesday, it was not.",
    "Nobody in the {place} talked about the {treasure}, which is how {name} knew that it was important.",
    "{name} had three rules, and by noon the {treasure} had broken two of them.",
    "It was the kind of morning that smelled of rain and {place} secrets, and {name} was late.",
)
LOOKS = (
    "has a quick smile and slow hands",
    "wears a coat two sizes too large",
    "always hums when nobody listens",
    "never leaves home without a pencil",
)
WISHES = (
    "wants to see the sea just once",
    "is looking for a lost brother",
    "hopes to build a clock that never stops",
    "dreams of a quiet house with a red door",
)
FEARS = (
    "is afraid of silence",
    "cannot say no to a friend",
    "keeps every promise except the small ones",
    "has never told anyone the truth about the fire",
)
PRODUCTS = {
    "coffee": "Wake up to something warm.", "bicycle": "Two wheels, no limits.", "bakery": "Baked at dawn, gone by noon.",
    "bookshop": "Every shelf is a door.", "umbrella": "Bring your own weather.", "tea": "A quiet minute in every cup.",
    "shoe": "Made for the long way home.", "garden": "Grow a little every day.", "camera": "Keep the moment.",
    "pillow": "Where good days begin.", "museum": "Old things, new eyes.", "train": "Watch the world go by.",
}  # fmt: skip
LIKENESS = {
    "time": "Time is a river that carries even the stones.", "a city": "A city is a choir in which everyone sings a different song.",
    "love": "Love is a lamp that you carry for someone else.", "silence": "Silence is fresh snow that no one has walked on.",
    "memory": "Memory is a house where the rooms keep moving.", "anger": "Anger is a match that burns the hand that holds it.",
    "hope": "Hope is a seed that does not ask how long the winter is.", "a book": "A book is a door that fits in a pocket.",
    "music": "Music is weather for the heart.", "the sea": "The sea is an old story that is told again with every wave.",
}  # fmt: skip


def _cast(rng: Random) -> dict[str, str]:
    return {
        "name": rng.choice(NAMES),
        "animal": rng.choice(ANIMALS),
        "place": rng.choice(PLACES),
        "treasure": rng.choice(TREASURES),
    }


def _story(rng: Random) -> tuple[Slots, str]:
    cast = _cast(rng)
    frames = [rng.choice(part) for part in (OPENINGS, FINDINGS, TROUBLES, JOURNEYS, ENDINGS)]
    return cast, " ".join(frame.format(**cast) for frame in frames)


def _poem(rng: Random) -> tuple[Slots, str]:
    theme = rng.choice(list(COUPLETS))
    return {"theme": theme}, "\n".join(COUPLETS[theme])


def _haiku(rng: Random) -> tuple[Slots, str]:
    theme = rng.choice(list(HAIKU))
    return {"theme": theme}, HAIKU[theme]


def _first_line(rng: Random) -> tuple[Slots, str]:
    cast = _cast(rng)
    return cast, rng.choice(FIRST_LINES).format(**cast)


def _character(rng: Random) -> tuple[Slots, str]:
    name, place = rng.choice(NAMES), rng.choice(PLACES)
    return {
        "name": name,
        "place": place,
    }, f"{name} lives near the {place} and {rng.choice(LOOKS)}. {name} {rng.choice(WISHES)}, but {rng.choice(FEARS)}."


def _talk(rng: Random) -> tuple[Slots, str]:
    one, two = rng.sample(NAMES, 2)
    thing, place = rng.choice(TREASURES), rng.choice(PLACES)
    lines = (
        f'"Did you bring the {thing}?" asked {one}.',
        rng.choice(
            (f'"I left it in the {place}," said {two}.', f'"It is gone," said {two}. "Someone in the {place} took it."')
        ),
        rng.choice(
            (
                f'{one} smiled. "Then we have a story to tell."',
                f'{one} looked at the sky. "Then we must go back before dark."',
            )
        ),
    )
    return {"one": one, "two": two, "thing": thing}, "\n".join(lines)


def _tagline(rng: Random) -> tuple[Slots, str]:
    product = rng.choice(list(PRODUCTS))
    return {"product": product}, PRODUCTS[product]


def _likeness(rng: Random) -> tuple[Slots, str]:
    term = rng.choice(list(LIKENESS))
    return {"term": term}, LIKENESS[term]


TASKS = (
    Task(
        name="story", domain="creative_writing", weight=3, open_ended=True, fill=_story,
        asks=(
            "Write a short story about a {animal} named {name} who finds a {treasure} near the {place}.",
            "Tell me a story about {name} the {animal}, a {treasure} and the {place}.",
            "Write a tale with a {animal} called {name} and a {treasure}. It is set in the {place}.",
            "Invent a story: {name}, a {animal}, {place}, {treasure}.",
            "Tell a bedtime story about a {animal} and a {treasure}. Name the {animal} {name} and set it near the {place}.",
        ),
        held_out=("I would like to read a story in which {name} the {animal} gets a {treasure}. Let it happen in the {place}.",),
    ),
    Task(
        name="short_story", domain="creative_writing", weight=1.6, fill=_story,
        asks=("Write a short story about a {animal}.", "Tell me a story about a {treasure}.", "Write a story set in the {place}.", "Tell me a story.", "Write a short story.", "Write a short story about a {animal} and a {treasure}.", "Tell a story about {name}."),
        held_out=("Make up a little story about a {animal} for me.",),
    ),
    Task(
        name="poem", domain="creative_writing", weight=2, exact=True, fill=_poem,
        asks=("Write a poem about {theme}.", "Write a short poem about {theme}.", "Can you rhyme about {theme}?", "A poem about {theme}, please.", "Compose verses about {theme}."),
        held_out=("I would love a poem on {theme}.", "Please make a rhyming poem about {theme}."),
    ),
    Task(
        name="haiku", domain="creative_writing", weight=1.2, exact=True, fill=_haiku,
        asks=("Write a haiku about {theme}.", "A haiku about {theme}, please.", "Give me a haiku on {theme}.", "Compose a haiku about {theme}."),
        held_out=("I would like a haiku about {theme}.",),
    ),
    Task(
        name="first_line", domain="creative_writing", weight=0.8, open_ended=True, fill=_first_line,
        asks=("Write the first line of a novel about {name}, a {treasure} and the {place}.", "Give me an opening sentence with {name}, the {place} and a {treasure}."),
        held_out=("How could a book about {name}, a {treasure} and the {place} begin?",),
    ),
    Task(
        name="character", domain="creative_writing", weight=1, open_ended=True, fill=_character,
        asks=("Describe a character named {name} who lives near the {place}.", "Invent a character: {name}, from the {place}.", "Create a character called {name} from the {place}."),
        held_out=("Sketch a character for my novel. The name is {name}, the home is near the {place}.",),
    ),
    Task(
        name="dialogue", domain="creative_writing", weight=1, open_ended=True, fill=_talk,
        asks=("Write a short dialogue between {one} and {two} about a {thing}.", "Let {one} and {two} talk about a {thing}.", "Write a scene: {one} asks {two} for the {thing}."),
        held_out=("Show me a conversation in which {one} asks {two} about a {thing}.",),
    ),
    Task(
        name="tagline", domain="creative_writing", weight=0.8, exact=True, fill=_tagline,
        asks=("Write a tagline for a {product} brand.", "Give me a slogan for a {product} company.", "I need a slogan for a {product}."),
        held_out=("Find a catchy line for a {product} brand.",),
    ),
    Task(
        name="likeness", domain="creative_writing", weight=0.8, exact=True, fill=_likeness,
        asks=("Write a metaphor for {term}.", "Give me a metaphor about {term}.", "Describe {term} with an image."),
        held_out=("Find a poetic image for {term}.",),
    ),
)  # fmt: skip

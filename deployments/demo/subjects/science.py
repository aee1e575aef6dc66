"""Why and how nature works, elements, planets, formulas with small numbers, states of matter, and what an experiment shows."""
# ruff: noqa: E501 (text reads better unbroken)

from random import Random

from deployments.demo.subjects.mathematics import multiply_steps
from deployments.demo.task import Slots, Task

WHY = {
    ("is the sky blue", "the sky is blue"): "Sunlight contains all colours. Air scatters blue light much more than red light, so blue reaches our eyes from every direction.",
    ("is the sunset red", "the sunset is red"): "In the evening sunlight passes through more air. Most of the blue light is scattered away, so mainly red light is left.",
    ("does ice float on water", "ice floats on water"): "Water expands when it freezes. Ice is therefore less dense than liquid water, and it floats.",
    ("are leaves green", "leaves are green"): "Leaves contain chlorophyll. It absorbs red and blue light and reflects green light to our eyes.",
    ("does the moon have phases", "the moon has phases"): "The sun always lights half of the moon. As the moon moves around the Earth, we see different parts of the lit half.",
    ("are there seasons", "there are seasons"): "The axis of the Earth is tilted. Each half of the Earth leans towards the sun for part of the year and gets more direct light, which brings summer.",
    ("is there day and night", "there is day and night"): "The Earth turns around its axis once in 24 hours. The side that faces the sun has day and the other side has night.",
    ("are there tides", "there are tides"): "The gravity of the moon pulls on the oceans. Water rises on the side near the moon and on the opposite side, so most coasts have two high tides a day.",
    ("is the sea salty", "the sea is salty"): "Rain dissolves minerals from rocks and rivers carry them to the sea. Water evaporates, but the salt stays behind.",
    ("does metal feel cold", "metal feels cold"): "Metal conducts heat well. It takes heat from your hand quickly, so it feels colder than wood of the same temperature.",
    ("does a rainbow appear", "a rainbow appears"): "Raindrops bend sunlight and split it into colours. Each colour leaves the drop at a slightly different angle, so we see a bow.",
    ("do we hear thunder after lightning", "we hear thunder after lightning"): "Light travels much faster than sound. We see the flash at once, but the sound needs about three seconds for each kilometre.",
    ("does iron rust", "iron rusts"): "Iron reacts with oxygen and water. The product is iron oxide, which we call rust.",
    ("do things fall down", "things fall down"): "The mass of the Earth attracts all other masses. This force is gravity, and it pulls everything towards the ground.",
    ("does a hot air balloon rise", "a hot air balloon rises"): "Warm air is less dense than cold air. The balloon with its warm air weighs less than the cold air it displaces, so it rises.",
    ("do we need oxygen", "we need oxygen"): "Our cells use oxygen to release energy from food. Without oxygen they cannot make enough energy to live.",
    ("do stars twinkle", "stars twinkle"): "The light of a star passes through moving layers of air. The layers bend the light a little, so the star seems to change its brightness.",
    ("does soap clean", "soap cleans"): "One end of a soap molecule likes water and the other end likes fat. Soap surrounds the fat so that water can wash it away.",
    ("does bread rise", "bread rises"): "Yeast eats sugar and gives off carbon dioxide. The gas makes bubbles in the dough, and the bread rises.",
    ("does the ocean look blue", "the ocean looks blue"): "Water absorbs red light more than blue light. The light that comes back to us from deep water is mostly blue.",
    ("can sound not travel in space", "sound cannot travel in space"): "Sound is a vibration of matter. Space is almost empty, so there is nothing that could vibrate.",
    ("do wet clothes dry in the wind", "wet clothes dry in the wind"): "Wind carries away the moist air near the cloth. Dry air takes its place, so the water evaporates faster.",
    ("do we see ourselves in a mirror", "we see ourselves in a mirror"): "A mirror is very smooth and reflects light in an orderly way. The light from your face comes back to your eyes as an image.",
    ("does a magnet attract iron", "a magnet attracts iron"): "The atoms of iron act like tiny magnets. Near a magnet they line up, and the iron is pulled towards it.",
}  # fmt: skip
WHAT = {
    "photosynthesis": "Photosynthesis is how plants make sugar. They use light, water and carbon dioxide, and they release oxygen.",
    "gravity": "Gravity is the force by which masses attract each other. It keeps us on the ground and the planets in their orbits.",
    "an atom": "An atom is the smallest piece of an element. It has a nucleus of protons and neutrons, with electrons around it.",
    "a molecule": "A molecule is a group of atoms that are bound together. A water molecule has two hydrogen atoms and one oxygen atom.",
    "evaporation": "Evaporation is the change from liquid to gas below the boiling point. The fastest molecules leave the surface.",
    "condensation": "Condensation is the change from gas to liquid. It happens when water vapour cools, for example on a cold window.",
    "a cell": "A cell is the smallest unit of life. Every living thing is made of one or more cells.",
    "DNA": "DNA is the molecule that stores the instructions of life. It is a double helix in the cells of every living thing.",
    "evolution": "Evolution is the change of living things over many generations. Those that fit their surroundings better leave more offspring.",
    "a hypothesis": "A hypothesis is an idea that can be tested. An experiment can support it or show that it is wrong.",
    "an experiment": "An experiment tests a hypothesis. You change one thing, keep the others the same, and measure what happens.",
    "a control group": "A control group is not given the treatment. You compare with it to see what the treatment really does.",
    "energy": "Energy is the ability to do work. It can change its form, but it is never created or destroyed.",
    "friction": "Friction is a force between surfaces that rub against each other. It slows motion and makes heat.",
    "density": "Density is mass divided by volume. An object floats in water when its density is lower than that of water.",
    "electric current": "Electric current is the flow of electric charge, for example of electrons in a wire. It is measured in amperes.",
    "a black hole": "A black hole is a place where gravity is so strong that nothing can escape, not even light.",
    "a galaxy": "A galaxy is a huge group of stars, gas and dust that is held together by gravity. Ours is the Milky Way.",
    "the water cycle": "Water evaporates from the sea, forms clouds, falls as rain, and flows back to the sea in rivers.",
    "a virus": "A virus is a tiny particle that can only multiply inside the cells of a living thing.",
    "an ecosystem": "An ecosystem is a community of living things together with their surroundings, such as a pond or a forest.",
    "climate": "Climate is the usual weather of a place over many years. Weather is what happens on one day.",
}
ELEMENTS = {
    "hydrogen": ("H", 1), "helium": ("He", 2), "lithium": ("Li", 3), "carbon": ("C", 6), "nitrogen": ("N", 7), "oxygen": ("O", 8),
    "fluorine": ("F", 9), "neon": ("Ne", 10), "sodium": ("Na", 11), "magnesium": ("Mg", 12), "aluminium": ("Al", 13),
    "silicon": ("Si", 14), "sulfur": ("S", 16), "chlorine": ("Cl", 17), "argon": ("Ar", 18), "potassium": ("K", 19),
    "calcium": ("Ca", 20), "iron": ("Fe", 26), "copper": ("Cu", 29), "zinc": ("Zn", 30), "silver": ("Ag", 47), "tin": ("Sn", 50),
    "gold": ("Au", 79), "mercury": ("Hg", 80), "lead": ("Pb", 82), "uranium": ("U", 92),
}  # fmt: skip
PLANETS = {
    "Mercury": "Mercury is the smallest planet and the one nearest to the sun.",
    "Venus": "Venus is the hottest planet. Its thick air holds the heat of the sun.",
    "Earth": "Earth is the third planet from the sun and the only one known to have life.",
    "Mars": "Mars is the red planet. Its soil contains rusted iron.",
    "Jupiter": "Jupiter is the largest planet. It is a giant ball of gas with a great red storm.",
    "Saturn": "Saturn is a gas giant with bright rings of ice and rock.",
    "Uranus": "Uranus is a cold ice giant that rolls around the sun on its side.",
    "Neptune": "Neptune is the planet farthest from the sun. It is cold, blue and very windy.",
}


def _why(rng: Random) -> tuple[Slots, str]:
    question, clause = rng.choice(list(WHY))
    return {"question": question, "clause": clause}, WHY[question, clause]


def _what(rng: Random) -> tuple[Slots, str]:
    term = rng.choice(list(WHAT))
    return {"term": term}, WHAT[term]


def _element(rng: Random) -> tuple[Slots, str]:
    name = rng.choice(list(ELEMENTS))
    symbol, number = ELEMENTS[name]
    return {"name": name}, f"{name.capitalize()} has the symbol {symbol} and the atomic number {number}."


def _planet(rng: Random) -> tuple[Slots, str]:
    name = rng.choice(list(PLANETS))
    return {"name": name}, PLANETS[name]


def _distance(rng: Random) -> tuple[Slots, str]:
    v, t = rng.randint(2, 49), rng.randint(2, 9)
    who = rng.choice(("car", "train", "cyclist", "boat", "runner", "bird"))
    answer = f"Distance is speed times time. {multiply_steps(v, t)} The distance is {v * t} kilometres."
    return {"v": str(v), "t": str(t), "who": who}, answer


def _force(rng: Random) -> tuple[Slots, str]:
    m, a = rng.randint(2, 49), rng.randint(2, 9)
    answer = f"Force is mass times acceleration. {multiply_steps(m, a)} The force is {m * a} newtons."
    return {"m": str(m), "a": str(a)}, answer


def _voltage(rng: Random) -> tuple[Slots, str]:
    r, i = rng.randint(2, 49), rng.randint(2, 9)
    answer = f"Voltage is resistance times current. {multiply_steps(r, i)} The voltage is {r * i} volts."
    return {"r": str(r), "i": str(i)}, answer


def _state(rng: Random) -> tuple[Slots, str]:
    t = rng.randint(-40, 160)
    state = "solid" if t < 0 else "liquid" if t < 100 else "gas"
    why = {"solid": "below 0", "liquid": "between 0 and 100", "gas": "100 or more"}[state]
    kind = "a gas" if state == "gas" else state
    return {"t": str(t)}, f"{t} degrees is {why}, so water is {kind}."


TESTS = (
    ("light", "plants in light", "plants in the dark", "grew", "cm", "helps plants to grow"),
    ("fertilizer", "beans with fertilizer", "beans without fertilizer", "grew", "cm", "helps beans to grow"),
    ("the medicine", "patients with the medicine", "patients without it", "slept", "hours", "helps patients to sleep"),
    ("salt", "ice with salt", "ice without salt", "lost", "grams", "makes ice melt faster"),
    ("a smooth surface", "a cart on glass", "a cart on sand", "rolled", "metres", "lets a cart roll farther"),
)


def _conclude(rng: Random) -> tuple[Slots, str]:
    cause, first, second, verb, unit, effect = rng.choice(TESTS)
    b = rng.randint(1, 40)
    a = b + rng.choice((0, rng.randint(1, 40)))
    text = f"{first} {verb} {a} {unit}, {second} {verb} {b} {unit}"
    if a == b:
        return {
            "text": text
        }, f"Both groups show {a} {unit}. There is no difference, so the test does not show that {cause} {effect}."
    return (
        {"text": text},
        f"{a} {unit} is more than {b} {unit}. The test suggests that {cause} {effect}. It should be repeated with everything else kept the same.",
    )


TASKS = (
    Task(
        name="why", domain="scientific_reasoning", weight=3, exact=True, fill=_why,
        asks=("Why {question}?", "Why {question}?", "Explain why {clause}.", "Why is it that {clause}?", "Tell me why {clause}.", "What is the reason that {clause}?", "Can you tell me why {clause}?"),
        held_out=("Please explain to a child why {clause}.", "Do you know why {clause}?"),
    ),
    Task(
        name="what", domain="scientific_reasoning", weight=2.4, exact=True, fill=_what,
        asks=("What is {term}?", "Explain {term}.", "Define {term}.", "Describe {term} in simple words.", "Tell me about {term}.", "How does {term} work?"),
        held_out=("Could you explain what {term} is?", "What do scientists mean by {term}?"),
    ),
    Task(
        name="element", domain="scientific_reasoning", weight=1, exact=True, fill=_element,
        asks=("What is the symbol of {name}?", "Give the symbol and number of {name}.", "What is the atomic number of {name}?", "Tell me about the element {name}."),
        held_out=("Which symbol and atomic number does {name} have?",),
    ),
    Task(
        name="planet", domain="scientific_reasoning", weight=0.7, exact=True, fill=_planet,
        asks=("What is {name} like?", "Tell me about the planet {name}.", "Describe {name}.", "What do you know about {name}?"),
        held_out=("Give me a fact about the planet {name}.",),
    ),
    Task(
        name="distance", domain="scientific_reasoning", weight=1.2, open_ended=True, exact=True, fill=_distance,
        asks=("A {who} moves at {v} kilometres per hour for {t} hours. How far does it go?", "How far does a {who} get in {t} hours at {v} km per hour?"),
        held_out=("At {v} kilometres per hour, what distance does a {who} cover in {t} hours?",),
    ),
    Task(
        name="force", domain="scientific_reasoning", weight=0.9, open_ended=True, exact=True, fill=_force,
        asks=("What force gives a mass of {m} kg an acceleration of {a} m/s^2?", "A mass of {m} kg accelerates at {a} m/s^2. What is the force?"),
        held_out=("Which force accelerates {m} kg by {a} m/s^2?",),
    ),
    Task(
        name="voltage", domain="scientific_reasoning", weight=0.9, open_ended=True, exact=True, fill=_voltage,
        asks=("A current of {i} amperes flows through {r} ohms. What is the voltage?", "What is the voltage over {r} ohms at {i} amperes?"),
        held_out=("Which voltage drives {i} amperes through {r} ohms?",),
    ),
    Task(
        name="state", domain="scientific_reasoning", weight=0.9, open_ended=True, exact=True, fill=_state,
        asks=("Is water at {t} degrees Celsius solid, liquid or gas?", "In which state is water at {t} degrees Celsius?"),
        held_out=("What form does water have at {t} degrees Celsius?",),
    ),
    Task(
        name="conclude", domain="scientific_reasoning", weight=1.2, open_ended=True, exact=True, fill=_conclude,
        asks=("In a test, {text}. What can we conclude?", "Result: {text}. What does this show?", "We measured: {text}. What follows?"),
        held_out=("An experiment gave this: {text}. What do you conclude?",),
    ),
)  # fmt: skip

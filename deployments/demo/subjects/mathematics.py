"""Small arithmetic digit by digit, word problems, sequences, rectangles, equations and definitions."""
# ruff: noqa: E501 (text reads better unbroken)

from random import Random

from deployments.demo.subjects.words import NAMES, THINGS
from deployments.demo.task import Slots, Task


def add_steps(a: int, b: int) -> str:
    """Column addition of numbers below 100, written out."""
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    first = f"ones {a % 10} + {b % 10} = {ones}"
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}."
    if ones > 9:
        first += f", write {ones % 10}, carry 1"
        return f"{first}; tens {a // 10} + {b // 10} + 1 = {tens + 1}. So {a} + {b} = {a + b}."
    return f"{first}; tens {a // 10} + {b // 10} = {tens}. So {a} + {b} = {a + b}."


def subtract_steps(a: int, b: int) -> str:
    if a < 10:
        return f"{a} - {b} = {a - b}."
    if a % 10 < b % 10:
        ones = f"ones {a % 10} - {b % 10}, borrow 1: 1{a % 10} - {b % 10} = {a % 10 + 10 - b % 10}"
        tens = f"tens {a // 10 - 1} - {b // 10} = {a // 10 - 1 - b // 10}"
    else:
        ones = f"ones {a % 10} - {b % 10} = {a % 10 - b % 10}"
        tens = f"tens {a // 10} - {b // 10} = {a // 10 - b // 10}"
    return f"{ones}; {tens}. So {a} - {b} = {a - b}."


def multiply_steps(a: int, b: int) -> str:
    if a < 10:
        return f"{a} x {b} = {a * b}."
    ones = a % 10 * b
    carry = ones // 10
    first = f"ones {a % 10} x {b} = {ones}" + (f", write {ones % 10}, carry {carry}" if carry else "")
    tens = f"tens {a // 10} x {b} = {a // 10 * b}"
    tens += f", plus {carry} = {a // 10 * b + carry}" if carry else ""
    return f"{first}; {tens}. So {a} x {b} = {a * b}."


def _add(rng: Random) -> tuple[Slots, str]:
    top = rng.choice((9, 99, 99))
    a, b = rng.randint(1, top), rng.randint(1, top)
    return {"a": str(a), "b": str(b)}, add_steps(a, b)


def _subtract(rng: Random) -> tuple[Slots, str]:
    a = rng.randint(2, rng.choice((9, 99, 99)))
    b = rng.randint(1, a)
    return {"a": str(a), "b": str(b)}, subtract_steps(a, b)


def _multiply(rng: Random) -> tuple[Slots, str]:
    a, b = rng.randint(2, rng.choice((9, 9, 49))), rng.randint(2, 9)
    return {"a": str(a), "b": str(b)}, multiply_steps(a, b)


def _gain(rng: Random) -> tuple[Slots, str]:
    a, b, who, thing = rng.randint(2, 60), rng.randint(2, 39), rng.choice(NAMES), rng.choice(THINGS)
    slots = {"a": str(a), "b": str(b), "who": who, "things": thing}
    return slots, f"We add: {add_steps(a, b)} {who} has {a + b} {thing}."


def _lose(rng: Random) -> tuple[Slots, str]:
    a, who, thing = rng.randint(5, 90), rng.choice(NAMES), rng.choice(THINGS)
    b = rng.randint(2, a - 1)
    slots = {"a": str(a), "b": str(b), "who": who, "things": thing}
    return slots, f"We subtract: {subtract_steps(a, b)} {who} has {a - b} {thing} left."


def _groups(rng: Random) -> tuple[Slots, str]:
    a, b, who, thing = rng.randint(2, 25), rng.randint(2, 9), rng.choice(NAMES), rng.choice(THINGS)
    slots = {"a": str(a), "b": str(b), "who": who, "things": thing}
    return slots, f"We multiply: {multiply_steps(a, b)} {who} has {a * b} {thing}."


def _sequence(rng: Random) -> tuple[Slots, str]:
    step, start = rng.choice((2, 3, 4, 5, 10)), rng.randint(1, 20)
    row = [start + step * i for i in range(5)]
    shown = ", ".join(map(str, row[:4]))
    return {"row": shown}, f"Each number is {step} more than the one before it, so the next number is {row[4]}."


def _larger(rng: Random) -> tuple[Slots, str]:
    a, b = rng.sample(range(1, 100), 2)
    return {"a": str(a), "b": str(b)}, f"{max(a, b)} is larger than {min(a, b)}."


def _parity(rng: Random) -> tuple[Slots, str]:
    a = rng.randint(1, 999)
    return {"a": str(a)}, f"The last digit of {a} is {a % 10}, so {a} is {'odd' if a % 2 else 'even'}."


def _rectangle(rng: Random) -> tuple[Slots, str]:
    a, b = rng.randint(2, 19), rng.randint(2, 9)
    answer = f"The area is length times width. {multiply_steps(a, b)} The area is {a * b} square metres."
    return {"a": str(a), "b": str(b)}, answer


def _equation(rng: Random) -> tuple[Slots, str]:
    x, a = rng.randint(1, 40), rng.randint(1, 40)
    answer = f"Subtract {a} from both sides: x = {x + a} - {a}. {subtract_steps(x + a, a)} So x = {x}."
    return {"a": str(a), "c": str(x + a)}, answer


DEFINITIONS = {
    "a prime number": "A prime number is a whole number greater than 1 that has no divisors except 1 and itself. The first primes are 2, 3, 5, 7 and 11.",
    "an even number": "An even number is a whole number that can be divided by 2 without a remainder, such as 2, 4 and 6.",
    "an odd number": "An odd number is a whole number that leaves a remainder of 1 when it is divided by 2, such as 1, 3 and 5.",
    "a fraction": "A fraction is a part of a whole. It is written as a numerator over a denominator, such as 1/2.",
    "a triangle": "A triangle is a shape with three straight sides and three angles. Its angles add up to 180 degrees.",
    "a right angle": "A right angle is an angle of 90 degrees, like the corner of a square.",
    "a square": "A square is a shape with four equal sides and four right angles.",
    "a circle": "A circle is the set of all points at the same distance from a centre. That distance is the radius.",
    "the mean": "The mean is the sum of some values divided by how many values there are.",
    "the median": "The median is the middle value when the values are sorted from small to large.",
    "a percentage": "A percentage is a number out of one hundred. For example, 25 percent means 25 out of 100.",
    "an equation": "An equation says that two expressions are equal, such as x + 2 = 5.",
    "a variable": "A variable is a letter, such as x, that stands for a number we do not know yet.",
    "the perimeter": "The perimeter is the total length of the sides around a shape.",
    "the Pythagorean theorem": "In a right triangle the square of the longest side equals the sum of the squares of the other two sides: a^2 + b^2 = c^2.",
    "a derivative": "A derivative tells how fast a function changes. It is the slope of the curve at a point.",
    "an integral": "An integral adds up many small pieces. It gives the area under a curve.",
    "probability": "Probability is a number from 0 to 1 that says how likely something is. A fair coin shows heads with probability 1/2.",
}


def _definition(rng: Random) -> tuple[Slots, str]:
    term = rng.choice(list(DEFINITIONS))
    return {"term": term}, DEFINITIONS[term]


SMALL = ("What is {a} {op} {b}?", "Calculate {a} {op} {b}.", "{a} {op} {b} = ?", "Work out {a} {op} {b}.", "{a} {op} {b}",
         "How much is {a} {op} {b}?", "Please compute {a} {op} {b}.", "What does {a} {op} {b} equal?")  # fmt: skip
SMALL_HELD_OUT = ("Can you tell me what {a} {op} {b} is?", "Solve: {a} {op} {b}")


def _signed(op: str, *words: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (*(ask.replace("{op}", op) for ask in SMALL), *words), tuple(a.replace("{op}", op) for a in SMALL_HELD_OUT)


ADD, ADD_HELD_OUT = _signed("+", "Add {a} and {b}.", "What is {a} plus {b}?", "What is the sum of {a} and {b}?")
SUBTRACT, SUBTRACT_HELD_OUT = _signed("-", "Subtract {b} from {a}.", "What is {a} minus {b}?")
MULTIPLY, MULTIPLY_HELD_OUT = _signed("x", "Multiply {a} by {b}.", "What is {a} times {b}?", "What is {a} * {b}?")

TASKS = (
    Task(name="add", domain="math", weight=3, asks=ADD, held_out=ADD_HELD_OUT, fill=_add, open_ended=True, exact=True),
    Task(name="subtract", domain="math", weight=2.5, asks=SUBTRACT, held_out=SUBTRACT_HELD_OUT, fill=_subtract, open_ended=True, exact=True),
    Task(name="multiply", domain="math", weight=2.5, asks=MULTIPLY, held_out=MULTIPLY_HELD_OUT, fill=_multiply, open_ended=True, exact=True),
    Task(
        name="gain", domain="math", weight=1, open_ended=True, exact=True, fill=_gain,
        asks=(
            "{who} has {a} {things} and buys {b} more. How many {things} does {who} have?",
            "{who} finds {a} {things} on Monday and {b} on Tuesday. How many {things} is that?",
            "There are {a} {things} in a box. {who} adds {b} more. How many are there now?",
        ),
        held_out=("{who} has {a} {things}. A friend gives {who} {b} more. How many {things} does {who} have now?",),
    ),
    Task(
        name="lose", domain="math", weight=1, open_ended=True, exact=True, fill=_lose,
        asks=(
            "{who} has {a} {things} and gives away {b}. How many are left?",
            "{who} had {a} {things} but lost {b} of them. How many {things} are left?",
            "{who} has {a} {things} and sells {b}. How many {things} does {who} have left?",
        ),
        held_out=("There were {a} {things} on the table. {who} took away {b}. How many {things} are left?",),
    ),
    Task(
        name="groups", domain="math", weight=1, open_ended=True, exact=True, fill=_groups,
        asks=(
            "{who} has {b} bags with {a} {things} in each. How many {things} is that in all?",
            "{who} buys {b} boxes. Each box holds {a} {things}. How many {things} does {who} have?",
        ),
        held_out=("Each of the {b} shelves holds {a} {things}. {who} counts them all. How many {things} are there?",),
    ),
    Task(
        name="sequence", domain="math", weight=1, open_ended=True, exact=True, fill=_sequence,
        asks=("What number comes next: {row}?", "Continue the sequence {row}.", "Which number follows {row}?", "Find the next number: {row}"),
        held_out=("What is the next term of {row}?",),
    ),
    Task(
        name="larger", domain="math", weight=0.6, open_ended=True, exact=True, fill=_larger,
        asks=("Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?", "Compare {a} and {b}."),
        held_out=("Is {a} or {b} the larger number?",),
    ),
    Task(
        name="parity", domain="math", weight=0.6, open_ended=True, exact=True, fill=_parity,
        asks=("Is {a} even or odd?", "Is the number {a} odd or even?", "Tell me whether {a} is even."),
        held_out=("Would you call {a} an even or an odd number?",),
    ),
    Task(
        name="rectangle", domain="math", weight=0.8, open_ended=True, exact=True, fill=_rectangle,
        asks=(
            "What is the area of a rectangle {a} metres long and {b} metres wide?",
            "A garden is {a} metres long and {b} metres wide. What is its area?",
            "Find the area of a room of {a} by {b} metres.",
        ),
        held_out=("A field measures {a} metres by {b} metres. How large is its area?",),
    ),
    Task(
        name="equation", domain="math", weight=1, open_ended=True, exact=True, fill=_equation,
        asks=("Solve x + {a} = {c}.", "If x + {a} = {c}, what is x?", "Find x: x + {a} = {c}"),
        held_out=("What value of x makes x + {a} = {c} true?",),
    ),
    Task(
        name="definition", domain="math", weight=1.2, exact=True, fill=_definition,
        asks=("What is {term}?", "Define {term}.", "Explain {term}.", "Explain {term} in simple words.", "Tell me what {term} is."),
        held_out=("Could you explain {term} to me?", "What do mathematicians mean by {term}?"),
    ),
)  # fmt: skip

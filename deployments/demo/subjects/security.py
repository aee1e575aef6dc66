"""Short code with a weakness and its mend, what each weakness is, safe habits, small functions, library docstrings."""
# ruff: noqa: E501 (text reads better unbroken)

import importlib
import inspect
from dataclasses import dataclass
from random import Random

from deployments.demo.task import Slots, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Weakness:
    """`bad` and `good` are code with the slots {f} (function), {v} (variable) and {t} (table, key or file)."""

    name: str
    about: str
    because: str
    mend: str
    bad: tuple[str, ...]
    good: tuple[str, ...]


WEAKNESSES = (
    Weakness(
        name="SQL injection",
        about="SQL injection happens when user input becomes part of a database query. An attacker can then read or change any data.",
        because="the input {v} is pasted into the query",
        mend="Pass {v} as a parameter",
        bad=(
            'def {f}(db, {v}):\n    return db.execute("SELECT * FROM {t} WHERE id = " + {v})',
            "def {f}(db, {v}):\n    return db.execute(f\"SELECT * FROM {t} WHERE id = '{{{v}}}'\")",
        ),
        good=('def {f}(db, {v}):\n    return db.execute("SELECT * FROM {t} WHERE id = ?", ({v},))',) * 2,
    ),
    Weakness(
        name="command injection",
        about="Command injection happens when user input reaches a shell. An attacker can then run any command on the server.",
        because="the input {v} is given to a shell",
        mend="Pass a list of arguments and no shell",
        bad=(
            'def {f}({v}):\n    os.system("{t} " + {v})',
            'def {f}({v}):\n    subprocess.run("{t} " + {v}, shell=True)',
        ),
        good=('def {f}({v}):\n    subprocess.run(["{t}", {v}], check=True)',) * 2,
    ),
    Weakness(
        name="path traversal",
        about="Path traversal happens when user input names a file. With ../ an attacker can leave the folder and read other files.",
        because="{v} may contain ../ and leave the folder",
        mend="Resolve the path and check that it stays inside",
        bad=('def {f}({v}):\n    return open("{t}/" + {v}).read()',),
        good=('def {f}({v}):\n    path = (Path("{t}") / {v}).resolve()\n    if not path.is_relative_to(Path("{t}").resolve()):\n        raise PermissionError({v})\n    return path.read_text()',),
    ),
    Weakness(
        name="cross-site scripting",
        about="Cross-site scripting happens when user input is shown in a page without escaping. An attacker can then run scripts in the browsers of other users.",
        because="{v} is put into the page without escaping",
        mend="Escape {v} first",
        bad=('def {f}({v}):\n    return "<{t}>" + {v} + "</{t}>"',),
        good=('def {f}({v}):\n    return "<{t}>" + html.escape({v}) + "</{t}>"',),
    ),
    Weakness(
        name="a hard-coded secret",
        about="A hard-coded secret is a password or key in the source code. Everyone who can read the code can use it.",
        because="the secret is written in the source code",
        mend="Read it from the environment",
        bad=('{v} = "{t}-12345"\n\ndef {f}():\n    return connect({v})',),
        good=('{v} = os.environ["{v}"]\n\ndef {f}():\n    return connect({v})',),
    ),
    Weakness(
        name="unsafe deserialization",
        about="Unsafe deserialization happens when a program loads objects from untrusted data. Loading with pickle can run any code.",
        because="pickle can run code that is hidden in {v}",
        mend="Use JSON, which holds only data",
        bad=("def {f}({v}):\n    return pickle.loads({v})",),
        good=("def {f}({v}):\n    return json.loads({v})",),
    ),
    Weakness(
        name="code injection",
        about="Code injection happens when user input is run as code, for example with eval.",
        because="eval runs whatever {v} contains",
        mend="Parse only literals",
        bad=("def {f}({v}):\n    return eval({v})",),
        good=("def {f}({v}):\n    return ast.literal_eval({v})",),
    ),
    Weakness(
        name="a weak password hash",
        about="A weak password hash such as MD5 is fast, so an attacker can try billions of guesses. Passwords need a slow, salted hash.",
        because="MD5 is fast and has no salt",
        mend="Use a slow hash with a salt",
        bad=("def {f}({v}):\n    return hashlib.md5({v}).hexdigest()", "def {f}({v}):\n    return hashlib.sha1({v}).hexdigest()"),
        good=("def {f}({v}):\n    salt = os.urandom(16)\n    return salt + hashlib.scrypt({v}, salt=salt, n=16384, r=8, p=1)",) * 2,
    ),
    Weakness(
        name="a timing leak",
        about="A timing leak happens when the time of a comparison depends on a secret. An attacker can guess it piece by piece.",
        because="== stops at the first difference, so its time tells how much of {v} is right",
        mend="Compare in constant time",
        bad=("def {f}({v}):\n    return {v} == {t}",),
        good=("def {f}({v}):\n    return hmac.compare_digest({v}, {t})",),
    ),
    Weakness(
        name="a predictable token",
        about="A predictable token comes from a random generator that is not made for secrets. An attacker can guess the next one.",
        because="the random module is predictable",
        mend="Use the secrets module",
        bad=('def {f}():\n    {v} = str(random.random())\n    return "{t}" + {v}',),
        good=('def {f}():\n    {v} = secrets.token_hex(16)\n    return "{t}" + {v}',),
    ),
    Weakness(
        name="disabled certificate checking",
        about="Without certificate checking an attacker in the network can read and change what is sent.",
        because="verify=False accepts any certificate",
        mend="Leave the check on",
        bad=('def {f}({v}):\n    return requests.get("https://{t}/" + {v}, verify=False)',),
        good=('def {f}({v}):\n    return requests.get("https://{t}/" + {v}, timeout=10)',),
    ),
    Weakness(
        name="a missing permission check",
        about="A missing permission check lets any user read or change what belongs to others.",
        because="nobody checks that the user owns {v}",
        mend="Check the owner first",
        bad=("def {f}(user, {v}):\n    return {t}[{v}]",),
        good=("def {f}(user, {v}):\n    if {t}[{v}].owner != user:\n        raise PermissionError({v})\n    return {t}[{v}]",),
    ),
)  # fmt: skip
FUNCTIONS = (
    "load",
    "find_user",
    "get_item",
    "show",
    "read_page",
    "search",
    "run_job",
    "check",
    "fetch",
    "handle",
    "lookup",
    "open_report",
    "get_user",
    "login",
    "save",
    "process",
    "view",
    "download",
    "render",
    "send_mail",
)
VARIABLES = (
    "name",
    "user_id",
    "value",
    "text",
    "data",
    "query",
    "token",
    "key",
    "page",
    "word",
    "item_id",
    "title",
    "username",
    "password",
    "filename",
    "user_input",
    "command",
    "comment",
    "email",
    "order_id",
)
TARGETS = (
    "users",
    "orders",
    "files",
    "reports",
    "notes",
    "items",
    "pages",
    "books",
    "photos",
    "invoices",
    "teams",
    "logs",
    "accounts",
    "products",
    "messages",
    "uploads",
    "images",
    "customers",
    "posts",
    "backups",
)

HABITS = {
    "secure a login form": "Use HTTPS, store passwords with a slow salted hash, limit the number of tries, and offer a second factor.",
    "store passwords": "Never store the password itself. Store a salted hash from a slow function such as scrypt or argon2.",
    "protect an API key": "Keep it out of the source code, read it from the environment or a secret store, and change it regularly.",
    "prevent SQL injection": "Use parameters in every query and never paste input into SQL. Give the database user few rights.",
    "prevent cross-site scripting": "Escape all output, use a template engine that does so by default, and set a content security policy.",
    "handle file uploads": "Limit the size, check the type, choose the file name yourself, and store the file outside the web folder.",
    "secure a REST API": "Use HTTPS, check who calls and what they may do, validate every input, and limit the rate of requests.",
    "keep dependencies safe": "Pin the versions, read the security notices, update often, and remove what you do not use.",
    "log safely": "Write down who did what and when, but never log passwords, tokens or personal data.",
    "validate input": "Accept only what you expect: check type, length and range, and reject everything else.",
    "protect a cookie": "Set Secure, HttpOnly and SameSite, and give the cookie a short life.",
    "respond to a leak": "Revoke the leaked keys, find out how it happened, close the hole, and tell the people who are affected.",
    "write safe error messages": "Tell the user what to do next, keep the details in the log, and never show a stack trace.",
    "run untrusted code": "Run it in a sandbox without network, with limits on time and memory, and as a user without rights.",
}

SNIPPETS = {
    "adds two numbers": "def add(a, b):\n    return a + b",
    "returns the largest number in a list": "def largest(numbers):\n    return max(numbers)",
    "returns the smallest number in a list": "def smallest(numbers):\n    return min(numbers)",
    "sums a list": "def total(numbers):\n    result = 0\n    for number in numbers:\n        result += number\n    return result",
    "computes the mean of a list": "def mean(numbers):\n    return sum(numbers) / len(numbers)",
    "reverses a string": "def reverse(text):\n    return text[::-1]",
    "checks whether a number is even": "def is_even(number):\n    return number % 2 == 0",
    "checks whether a number is prime": "def is_prime(number):\n    if number < 2:\n        return False\n    for divisor in range(2, int(number ** 0.5) + 1):\n        if number % divisor == 0:\n            return False\n    return True",
    "computes a factorial": "def factorial(number):\n    if number < 2:\n        return 1\n    return number * factorial(number - 1)",
    "computes Fibonacci numbers": "def fibonacci(count):\n    numbers = [0, 1]\n    while len(numbers) < count:\n        numbers.append(numbers[-1] + numbers[-2])\n    return numbers[:count]",
    "counts the words in a text": "def count_words(text):\n    return len(text.split())",
    "counts the vowels in a text": 'def count_vowels(text):\n    return sum(letter in "aeiou" for letter in text.lower())',
    "checks for a palindrome": "def is_palindrome(text):\n    return text == text[::-1]",
    "removes duplicates from a list": "def unique(items):\n    return list(dict.fromkeys(items))",
    "reads a file": "def read_file(path):\n    with open(path) as file:\n        return file.read()",
    "loads a JSON file": "def load_json(path):\n    with open(path) as file:\n        return json.load(file)",
    "sorts a list of names": "def sort_names(names):\n    return sorted(names)",
    "merges two dictionaries": "def merge(first, second):\n    return {**first, **second}",
    "converts Celsius to Fahrenheit": "def to_fahrenheit(celsius):\n    return celsius * 9 / 5 + 32",
    "makes a random password": "def password(length):\n    letters = string.ascii_letters + string.digits\n    return \"\".join(secrets.choice(letters) for _ in range(length))",
    "finds the index of an item": "def find(items, wanted):\n    for index, item in enumerate(items):\n        if item == wanted:\n            return index\n    return None",
    "squares every number in a list": "def squares(numbers):\n    return [number ** 2 for number in numbers]",
    "says hello": 'def hello(name):\n    return f"Hello, {name}!"',
    "does a binary search": "def binary_search(items, wanted):\n    low, high = 0, len(items) - 1\n    while low <= high:\n        middle = (low + high) // 2\n        if items[middle] == wanted:\n            return middle\n        if items[middle] < wanted:\n            low = middle + 1\n        else:\n            high = middle - 1\n    return None",
}  # fmt: skip
LIBRARY = {
    "os": ("listdir", "getcwd", "remove", "rename", "mkdir"), "os.path": ("join", "exists", "basename", "dirname", "isfile"),
    "json": ("dumps", "loads"), "math": ("sqrt", "floor", "ceil", "gcd"), "shutil": ("copy", "rmtree", "move"),
    "secrets": ("token_hex", "choice", "compare_digest"), "hashlib": ("sha256", "new"), "html": ("escape", "unescape"),
    "bisect": ("bisect_left", "insort_left"), "heapq": ("heappush", "heappop"), "textwrap": ("dedent", "fill"),
    "functools": ("reduce", "wraps", "lru_cache"), "statistics": ("median", "mode", "stdev"), "glob": ("glob",),
}  # fmt: skip


def _documented() -> dict[str, str]:
    """First lines of docstrings of the standard library (PSF licence)."""
    found = {}
    for module, names in LIBRARY.items():
        for name in names:
            text = inspect.getdoc(getattr(importlib.import_module(module), name))
            if text and len(first := text.split("\n\n")[0].replace("\n", " ")) < 160:
                found[f"{module}.{name}"] = first
    return found


DOCSTRINGS = _documented()


def _coded(weakness: Weakness, rng: Random) -> tuple[str, str, dict[str, str]]:
    slots = {"f": rng.choice(FUNCTIONS), "v": rng.choice(VARIABLES), "t": rng.choice(TARGETS)}
    i = rng.randrange(len(weakness.bad))
    return weakness.bad[i].format(**slots), weakness.good[i].format(**slots), slots


def _review(rng: Random) -> tuple[Slots, str]:
    weakness = rng.choice(WEAKNESSES)
    bad, good, slots = _coded(weakness, rng)
    because, mend = weakness.because.format(**slots), weakness.mend.format(**slots)
    answer = f"This code has {weakness.name}: {because}. {mend}:\n```python\n{good}\n```"
    return {"code": f"```python\n{bad}\n```"}, answer


def _name(rng: Random) -> tuple[Slots, str]:
    weakness = rng.choice(WEAKNESSES)
    bad, _, slots = _coded(weakness, rng)
    return {"code": f"```python\n{bad}\n```"}, f"It is {weakness.name}, because {weakness.because.format(**slots)}."


def _safe(rng: Random) -> tuple[Slots, str]:
    weakness = rng.choice(WEAKNESSES)
    bad, good, slots = _coded(weakness, rng)
    if rng.random() < 0.5:
        return {"code": f"```python\n{good}\n```"}, f"Yes. This code is protected against {weakness.name}."
    return {
        "code": f"```python\n{bad}\n```"
    }, f"No. It has {weakness.name}, because {weakness.because.format(**slots)}."


def _about(rng: Random) -> tuple[Slots, str]:
    weakness = rng.choice(WEAKNESSES)
    return {"term": weakness.name}, weakness.about


def _habit(rng: Random) -> tuple[Slots, str]:
    goal = rng.choice(list(HABITS))
    return {"goal": goal}, HABITS[goal]


def _function(rng: Random) -> tuple[Slots, str]:
    goal = rng.choice(list(SNIPPETS))
    return {"goal": goal}, f"```python\n{SNIPPETS[goal]}\n```"


def _renamed(rng: Random) -> tuple[Slots, str]:
    function, variable = rng.choice(FUNCTIONS), rng.choice(VARIABLES)
    sign, word = rng.choice((("*", "multiplied by"), ("+", "plus"), ("-", "minus")))
    number = rng.randint(2, 99)
    code = f"```python\ndef {function}({variable}):\n    return {variable} {sign} {number}\n```"
    return {"function": function, "variable": variable, "word": word, "number": str(number)}, code


def _documentation(rng: Random) -> tuple[Slots, str]:
    name = rng.choice(list(DOCSTRINGS))
    return {"name": name}, DOCSTRINGS[name]


TASKS = (
    Task(
        name="review", domain="code_security", weight=3, open_ended=True, exact=True, fill=_review,
        asks=("Find the vulnerability and fix it:\n{code}", "Review this code:\n{code}", "What is wrong with this code?\n{code}", "Fix the security problem:\n{code}", "{code}\nHow can I make this safe?", "Is there a bug in this code?\n{code}"),
        held_out=("Please check this function for security holes and repair it.\n{code}",),
    ),
    Task(
        name="name_weakness", domain="code_security", weight=1.2, open_ended=True, exact=True, fill=_name,
        asks=("Which vulnerability is in this code?\n{code}", "Name the weakness:\n{code}", "What kind of attack does this allow?\n{code}"),
        held_out=("{code}\nWhich kind of weakness do you see here?",),
    ),
    Task(
        name="safe", domain="code_security", weight=1, open_ended=True, exact=True, fill=_safe,
        asks=("Is this code safe?\n{code}", "Is this secure?\n{code}", "Safe or not?\n{code}"),
        held_out=("Tell me if the following is secure.\n{code}",),
    ),
    Task(
        name="about_weakness", domain="code_security", weight=1.2, exact=True, fill=_about,
        asks=("What is {term}?", "Explain {term}.", "Describe {term}.", "Why is {term} dangerous?", "Tell me about {term}."),
        held_out=("Could you explain what {term} means?",),
    ),
    Task(
        name="habit", domain="code_security", weight=1.3, exact=True, fill=_habit,
        asks=("How do I {goal}?", "How should I {goal}?", "What is the best way to {goal}?", "Give me advice: how to {goal}?", "How can I {goal}?"),
        held_out=("Which steps help me to {goal}?", "I want to {goal}. What should I do?"),
    ),
    Task(
        name="function", domain="code_security", weight=2, exact=True, fill=_function,
        asks=("Write a Python function that {goal}.", "Write a function that {goal}.", "Give me Python code that {goal}.", "Show me a function in Python that {goal}.", "I need a Python function that {goal}."),
        held_out=("Could you code a Python function that {goal}?", "Please write some Python that {goal}."),
    ),
    Task(
        name="renamed", domain="code_security", weight=1, open_ended=True, exact=True, fill=_renamed,
        asks=("Write a function {function} that returns {variable} {word} {number}.", "Define {function}({variable}) in Python. It returns {variable} {word} {number}."),
        held_out=("I need a Python function called {function}. It takes {variable} and gives back {variable} {word} {number}.",),
    ),
    Task(
        name="documentation", domain="code_security", weight=0.8, exact=True, fill=_documentation,
        asks=("What does {name} do?", "What does {name} do in Python?", "Explain {name}.", "Describe {name}.", "What is {name} for?"),
        held_out=("Tell me what {name} is used for.",),
    ),
)  # fmt: skip

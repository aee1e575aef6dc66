"""Word lists that several subjects share."""
# ruff: noqa: E501 (text reads better unbroken)

NAMES = ("Mara", "Ben", "Lina", "Omar", "Tess", "Ivan", "Nora", "Hugo", "Aya", "Felix", "Ruth", "Karim", "Elena", "Jonas",
         "Priya", "Luca", "Greta", "Sam", "Zoe", "Tariq", "Anna", "David", "Mei", "Pablo", "Ida", "Noah", "Clara", "Yusuf",
         "Maria", "Peter", "Alice", "Bob", "Emma", "Liam", "Olivia", "Jack", "Sofia", "Max", "Julia", "Leo", "Hanna", "Carlos",
         "Fatima", "Wei", "Ada", "Alan", "Grace", "Tom", "Lucy", "Henry", "Kate", "Paul")  # fmt: skip
THINGS = ("apples", "books", "coins", "pencils", "shells", "stamps", "marbles", "eggs", "cards", "flowers", "stones",
          "tickets", "cookies", "buttons", "oranges", "stickers")  # fmt: skip
ANIMALS = ("fox", "owl", "cat", "dog", "bear", "rabbit", "mouse", "crow", "wolf", "turtle", "whale", "hedgehog", "goat", "robin",
           "dragon", "robot", "knight", "child", "wizard", "sailor", "horse", "bird", "pirate", "princess", "tiger", "frog")  # fmt: skip
PLACES = ("forest", "harbour", "village", "mountain", "garden", "desert", "island", "library", "lighthouse", "valley",
          "market", "old mill", "city", "meadow", "castle", "river", "lake", "sea")  # fmt: skip
TREASURES = ("lantern", "map", "key", "bell", "violin", "compass", "letter", "mirror", "clock", "seed", "book", "feather",
             "kite", "ring", "sword", "crown", "star", "candle", "coin", "stone", "drum", "boat", "robot", "rose")  # fmt: skip
CITIES = ("Oslo", "Lima", "Cairo", "Paris", "Delhi", "Quito", "Rome", "Tokyo", "Dakar", "Berlin", "Madrid", "Sydney",
          "Boston", "Prague", "Seoul", "Nairobi", "Vienna", "Lisbon",
          "London", "New York", "Chicago", "Mumbai", "Athens", "Dublin", "Munich", "Lagos", "Toronto", "Geneva", "Hanoi", "Warsaw")  # fmt: skip
JOBS = (
    "teacher",
    "nurse",
    "pilot",
    "baker",
    "engineer",
    "farmer",
    "doctor",
    "painter",
    "lawyer",
    "singer",
    "chemist",
    "driver",
)
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "purple", "orange", "silver", "golden", "brown", "pink")
PLAIN = ("river", "table", "window", "stone", "cloud", "winter", "summer", "bridge", "candle", "paper", "silver", "forest",
         "orange", "planet", "button", "garden", "rocket", "pencil", "mirror", "castle", "island", "basket", "thunder",
         "marble", "ticket", "valley", "copper", "breeze", "anchor", "ladder", "pillow", "whistle", "saddle", "velvet",
         "harvest", "meadow", "pepper", "lemon", "tiger", "dragon", "engine", "signal", "carpet", "bottle", "hammer")  # fmt: skip

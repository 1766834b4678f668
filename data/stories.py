"""Short stories for children, made by a grammar: text for a language model on a machine without network.

    python data/stories.py --count 1000 --seed 1 --output stories.txt

Who acts, what is looked for and where it was stays the same within a story, so a model that sees the whole story
predicts better than one that sees the last word. Stories are in the form of TinyStories: separated by <|endoftext|>.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plumbing import disk

VERSION = 1  # raise it when the same seed gives another text
END = "<|endoftext|>"


def words(text):
    return text.split()


def lines(text):
    return text.split("|")


GIRLS = words("Anna Lily Mia Sara Emma Nora Ella Zoe Ruth Clara Ivy Maya Rosa Tina Lucy Amy")
BOYS = words("Tom Ben Max Sam Leo Jack Tim Finn Noah Paul Adam Oscar Hugo Felix Will Dan")
FAMILY = {"mother": "she", "father": "he", "grandmother": "she", "grandfather": "he", "sister": "she", "brother": "he"}
ANIMALS = words("dog cat rabbit bird fox mouse bear duck frog squirrel horse goat turtle pony sheep hen")
THINGS = words(
    "ball kite book doll boat drum hat key lamp shell stone box cup flute rope spade truck puzzle blanket bell "
    "basket coin ring map scarf"
)
COLOURS = words("red blue green yellow white black brown purple orange pink golden silver")
SIZES = words("big small tiny old new round soft shiny pretty strange heavy light")
PLACES = {
    "garden": "in", "forest": "in", "park": "in", "kitchen": "in", "barn": "in", "attic": "in", "cave": "in",
    "river": "by", "lake": "by", "sea": "by", "bridge": "under", "hill": "on", "roof": "on", "tree": "under",
    "field": "in", "shop": "in", "school": "at", "tower": "in",
}  # fmt: skip
MOODS = words("happy sad tired curious brave shy hungry excited worried proud")
FOODS = words("bread soup cake apples berries cheese honey carrots nuts pie plums milk")
WEATHER = lines(
    "It was a sunny day|The rain fell all morning|Snow lay on the ground|A strong wind blew|The sky was grey|"
    "The air was warm|It was very early|The sun was going down"
)
HIDDEN = lines("behind a bush|under a leaf|between two stones|in the tall grass|in a dark corner|on a high branch")
LESSONS = lines(
    "to ask for help|to share with others|to tell the truth|to be patient|to look twice|to take care of small things|"
    "that friends are important|that it is good to try again"
)

OPENING = lines(
    "Once upon a time there was a {mood} {kind} named {name}. {He} lived {by} a {place} with {his} {parent}.|"
    "{name} was a {mood} {kind}. Every day {he} went to the {place} to play.|"
    "One day {name} and {his} {parent} walked to the {place}. {name} was {mood}.|"
    "There once was a {kind} called {name} who had a {size} {colour} {thing}. {He} took it to the {place}."
)
LOSS = lines(
    "{name} loved {his} {colour} {thing}. But today the {thing} was gone! {name} looked {by} the {place}, but it was "
    "not there.|"
    'Then {name} could not find {his} {colour} {thing}. "Where is my {thing}?" {he} asked. {name} began to cry.|'
    "{name} played with {his} {size} {thing} until the wind took it away. {He} ran after it, but the {thing} was too "
    "fast."
)
GIFT = lines(
    "{name} found a {size} {colour} {thing} {by} the {place}. {He} wanted to give it to {his} {parent}.|"
    '{his_} {parent} gave {name} a {colour} {thing}. "Thank you!" said {name}. The {thing} was {size} and {name} liked '
    "it very much.|"
    "{name} made a {size} {thing} and painted it {colour}. It took all day, and {he} was tired but {mood}."
)
MEETING = lines(
    'A {animal} came along. "Why are you so {feeling}?" asked the {animal}. {name} told the {animal} about the '
    "{thing}.|"
    'Soon {name} met a {size2} {animal}. The {animal} said, "Hello {name}, I am hungry. Do you have some {food}?" '
    "{name} gave the {animal} some {food}.|"
    "{by_} the {place} sat a {animal} that ate {food}. {name} was not afraid. {He} asked the {animal} to come and "
    "play.|"
    '{friend} saw {name} and waved. "Come with me, {name}!" said {friend}. They went to the {place2} together.'
)
MIDDLE = lines(
    "{weather}, and the way to the {place2} was long. {name} sang a song and {feeling_did}.|"
    'They looked {by2} the {place2}. "I see something {colour}!" said the {animal}. It was only a {other}.|'
    "At the {place2} {name} was hungry, so {he} ate {food2} and drank some water.|"
    "{name} waited and waited. {weather}. Then {he} heard a noise {hidden}."
)
FOUND = lines(
    "There it was, {hidden}: the {colour} {thing}! {name} was so happy that {he} hugged the {animal}.|"
    'The {animal} looked {hidden} and called, "Here is your {thing}, {name}!" {name} laughed and took the {thing}.|'
    "In the end {name} saw the {thing} {hidden}. {He} picked it up and held it tight."
)
SHARED = lines(
    '"You can have the {thing}," said {name} to the {animal}. The {animal} was happy, and they played with the {thing} '
    "until evening.|"
    "{name} showed the {colour} {thing} to the {animal}. They took turns, and nobody was sad.|"
    '"This {thing} is for you," {name} said to {his} {parent}. {His} {parent} smiled and put the {thing} on the table.'
)
ENDING = lines(
    "{name} went home to {his} {parent} and told the whole story. That day {name} learned {lesson}.|"
    "From then on {name} and the {animal} were best friends. They met {by} the {place} every day.|"
    'When it got dark, {his} {parent} said, "Good night, {name}." {name} put the {thing} by the bed and slept.|'
    "{name} had learned {lesson}. The end."
)


class Choices:
    """Random choices, the same for a seed on any machine."""

    def __init__(self, seed):
        self.random = np.random.Generator(np.random.Philox(seed))

    def of(self, options):
        return options[int(self.random.random() * len(options))]

    def other(self, options, *taken):
        return self.of([option for option in options if option not in taken])


def story(choices):
    of, other = choices.of, choices.other
    girl = of((True, False))
    name = of(GIRLS if girl else BOYS)
    place, thing = of(list(PLACES)), of(THINGS)
    place2, animal = other(list(PLACES), place), of(ANIMALS)
    lost = of((True, False))
    words = {
        "name": name, "kind": "girl" if girl else "boy", "he": "she" if girl else "he", "his": "her" if girl else "his",
        "parent": of(list(FAMILY)), "friend": other(GIRLS + BOYS, name), "animal": animal, "thing": thing,
        "other": other(THINGS, thing), "colour": of(COLOURS), "size": of(SIZES), "size2": of(SIZES), "mood": of(MOODS),
        "feeling": "sad" if lost else "happy", "place": place, "by": PLACES[place], "place2": place2,
        "by2": PLACES[place2], "food": of(FOODS), "food2": of(FOODS), "weather": of(WEATHER), "hidden": of(HIDDEN),
        "lesson": of(LESSONS), "feeling_did": of(("walked on", "did not stop", "thought of home", "held on")),
    }  # fmt: skip
    words["He"], words["His"], words["his_"] = words["he"].title(), words["his"].title(), words["his"].title()
    words["by_"] = words["by"].title()
    parts = [of(OPENING), of(LOSS if lost else GIFT), of(MEETING)]
    parts += [of(MIDDLE) for _ in range(of((0, 1, 1, 2)))] + [of(FOUND if lost else SHARED), of(ENDING)]
    text = " ".join(parts).format(**words)
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


def text(count, seed):
    """So many stories, each followed by a line <|endoftext|>; the same for the same arguments."""
    choices = Choices(seed)
    return "".join(f"{story(choices)}\n{END}\n" for _ in range(count))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, metavar="PATH", help="the text file to write")
    options = parser.parse_args(argv)
    if options.count < 1 or options.seed < 0:
        parser.error("--count: expected 1 or more; --seed: 0 or more")
    content = text(options.count, options.seed).encode()
    with disk.writing(Path(options.output).parent, Path(options.output).name):
        disk.replace(Path(options.output), lambda file: file.write(content))
    disk.say(f"{options.output}: {options.count:,} stories, {len(content):,} bytes")


if __name__ == "__main__":
    main()

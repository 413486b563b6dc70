"""Words that pocket was never taught, by what they are a kind of: makes wordnet.tsv. Knows WordNet's files and the vocabulary.

A beagle is a dog, a zither a stringed instrument. `python -m training.pocket.kin` needs Debian's wordnet-base; its list is kept, so that
nothing else does. What WordNet leaves out is in kin.tsv, by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from training.pocket import captions
from training.pocket import phrases as p
from training.pocket import vocabulary as v

HERE = Path(__file__).resolve().parent
WORDNET = Path("/usr/share/wordnet")
LIST = HERE / "wordnet.tsv"
HEADER = (
    "# Kinds of what pocket draws: key <TAB> English words. From WordNet 3.0, Copyright 2006 by Princeton University, all rights reserved,"
    " provided as is and without warranties, under the WordNet license (in README.md)."
)
# WordNet's noun and which of its senses -> the thing that is drawn for what is a kind of it. The nearest one counts.
KINDS = """
cat 1 cat; big_cat 1 lion; leopard 2 leopard; dog 1 dog; wolf 1 wolf; fox 1 fox; bear 1 bear; rabbit 1 rabbit; hare 1 rabbit; horse 1 horse; equine 1 horse;
pony 1 horse; sheep 1 sheep; goat 1 goat; antelope 1 goat; bovine 1 cow; cattle 1 cow; ox 1 bull; swine 1 pig; elephant 1 elephant; primate 2 monkey; ape 1 gorilla; rodent 1 mouse;
rat 1 rat; squirrel 1 squirrel; porcupine 1 hedgehog; frog 1 frog; salamander 1 lizard; snake 1 snake; crocodilian_reptile 1 crocodile; dinosaur 1 dinosaur;
lizard 1 lizard; turtle 2 turtle; bird 1 bird; duck 1 duck; goose 1 swan; swan 1 swan; owl 1 owl; parrot 1 parrot; bird_of_prey 1 eagle; vulture 1 eagle; chicken 2 rooster; hen 1 hen; turkey 1 turkey;
penguin 1 penguin; pigeon 1 dove; wading_bird 1 flamingo; seabird 1 dove; gallinaceous_bird 1 hen; peafowl 1 peacock; ratite 1 dodo; fish 1 fish; shark 1 shark; ray 7 shark; whale 2 whale;
dolphin 2 dolphin; seal 9 seal; crab 1 crab; lobster 2 lobster; shrimp 3 shrimp; decapod_crustacean 1 shrimp; cephalopod 1 octopus; squid 2 squid; octopus 2 octopus; gastropod 1 snail;
bivalve 1 seashell; butterfly 1 butterfly; moth 1 butterfly; caterpillar 1 caterpillar; worm 1 caterpillar; bee 1 bee; wasp 2 bee; beetle 1 beetle; ladybug 1 ladybug; ant 1 ant; orthopterous_insect 1 cricket;
cockroach 1 cockroach; mosquito 1 mosquito; fly 1 fly; insect 1 beetle; spider 1 spider; scorpion 3 scorpion; deer 1 deer; camel 1 camel; bat 1 bat; marsupial 1 kangaroo; musteline_mammal 1 otter;
raccoon 2 raccoon; rhinoceros 1 rhinoceros; sloth 2 sloth; edentate 1 badger; insectivore 1 hedgehog; hippopotamus 1 hippopotamus; viverrine 1 raccoon; lemur 1 monkey;
tree 1 tree; conifer 1 pine tree; palm 3 palm tree; cactus 1 cactus; flower 1 cherry blossom; rose 1 rose; lily 1 tulip; orchid 1 hibiscus; daisy 1 daisy; fern 1 herb; shrub 1 potted plant; bamboo 2 bamboo;
mushroom 2 mushroom; edible_fruit 1 apple; apple 1 apple; citrus 1 orange fruit; berry 1 strawberry; melon 1 melon; grape 1 grapes; pear 1 pear; plum 2 cherry; edible_nut 1 peanuts; vegetable 1 cabbage;
root_vegetable 1 carrot; potato 1 potato; squash 2 pumpkin; onion 3 onion; pepper 4 bell pepper; cruciferous_vegetable 1 broccoli; greens 1 cabbage; legume 3 peanuts; bread 1 bread; bun 1 bread; cake 3 cake; cookie 1 cookie; pie 1 pie; pastry 2 croissant; candy 1 candy;
chocolate 2 chocolate; cheese 1 cheese; soup 1 hot pot; stew 2 paella; pasta 2 spaghetti; sandwich 1 sandwich; sausage 1 hot dog; steak 1 steak; meat 1 meat; salad 1 salad; pancake 1 pancakes; pudding 1 pudding; frozen_dessert 1 ice cream; dessert 1 pudding;
seafood 1 fish; beer 1 beer; wine 1 wine; cocktail 1 cocktail; alcohol 1 wine; coffee 1 coffee; tea 1 green tea; soft_drink 1 soda; juice 1 juice box; beverage 1 soda; omelet 1 fried egg; egg 2 egg; rice 1 rice;
car 1 car; motor_vehicle 1 car; truck 1 truck; bus 1 bus; van 5 bus; ship 1 ship; boat 1 sailboat; sailing_vessel 1 sailboat; canoe 1 canoe; vessel 2 ship; submarine 1 ship; airplane 1 airplane; aircraft 1 airplane; helicopter 1 helicopter; airship 1 balloon; bicycle 1 bicycle; motorcycle 1 motorcycle;
train 1 train; sled 1 sled; rocket 1 rocket; spacecraft 1 rocket; tractor 1 tractor; locomotive 1 train;
guitar 1 guitar; stringed_instrument 1 guitar; bowed_stringed_instrument 1 violin; keyboard_instrument 1 piano; percussion_instrument 1 drum; brass 2 trumpet; woodwind 1 saxophone; musical_instrument 1 piano; bell 1 bell;
house 1 house; dwelling 1 house; cottage 1 house; castle 2 castle; palace 1 castle; fortress 1 castle; church 2 church; place_of_worship 1 temple; hotel 1 hotel; hospital 1 hospital; school 2 school; shop 1 convenience store; restaurant 1 convenience store;
tower 1 tokyo tower; skyscraper 1 office building; factory 1 factory; tent 1 tent; chair 1 chair; seat 3 chair; bed 1 bed; sofa 1 sofa; lamp 1 light bulb; lamp 2 light bulb; clock 1 clock; watch 1 watch; timepiece 1 clock;
hat 1 hat; headdress 1 hat; helmet 2 hat; cap 1 baseball cap; shoe 1 shoe; boot 1 boot; coat 1 coat; dress 1 dress; skirt 2 dress; trouser 1 jeans; shirt 1 t-shirt; sweater 1 t-shirt; glove 2 gloves; necktie 1 necktie; scarf 1 scarf; bag 1 handbag; suitcase 1 suitcase;
box 1 cardboard box; ball 1 football; knife 1 knife; sword 1 crossed swords; ax 1 axe; hammer 2 hammer; doll 1 teddy bear; book 1 book; newspaper 1 newspaper; camera 1 camera; telephone 1 telephone; computer 1 laptop; cup 1 coffee; jewelry 1 ring; necklace 1 ring; gem 2 diamond;
coin 1 coin; vase 1 vase; jar 1 vase; pot 1 hot pot; spoon 1 spoon; candle 1 candle; lantern 1 lantern; umbrella 1 umbrella; bucket 1 bucket; basket 1 basket; broom 1 broom; mirror 1 mirror; door 1 door; key 1 key; scissors 1 scissors; lock 1 lock; bomb 1 bomb; shield 2 shield; arrow 2 bow and arrow;
telescope 1 telescope; microscope 1 microscope; magnet 1 magnet; pencil 1 pencil; brush 2 paintbrush; spectacles 1 glasses; medal 1 medal; trophy 1 trophy; kite 3 kite; star 1 star; planet 1 saturn; comet 1 glowing star; cloud 2 cloud; tornado 1 tornado; volcano 2 volcano;
flag 1 red flag; firework 1 firecracker; rock 1 rock;
""".strip()
NOT_MEANT = frozenset(("golliwog", "golliwogg", "humankind", "humans", "mankind", "hominoid", "bbs", "chatroom", "bloomer", "madhouse",
                       "nuthouse", "daystar", "colors", "windfall", "commuter", "folder", "directory", "mac", "gig", "sinker"))  # fmt: skip


def _nouns() -> tuple[dict[str, tuple[list[str], list[str]]], dict[str, list[str]]]:
    """(synsets: words and what they are kinds of; the synsets of each word, the likeliest first)."""
    synsets: dict[str, tuple[list[str], list[str]]] = {}
    for line in (WORDNET / "data.noun").read_text("latin1").splitlines():
        if not line.startswith(" "):
            fields = line.split("|")[0].split()
            words = int(fields[3], 16)
            rest = fields[5 + 2 * words :]
            kinds = [
                rest[i + 1]
                for i in range(0, len(rest) - 3, 4)
                if rest[i] == "@" and rest[i + 2] == "n"
            ]
            synsets[fields[0]] = (fields[4 : 4 + 2 * words : 2], kinds)
    senses: dict[str, list[str]] = {}
    for line in (WORDNET / "index.noun").read_text("latin1").splitlines():
        if not line.startswith(" "):
            fields = line.split()
            senses[fields[0]] = fields[6 + int(fields[3]) :]
    return synsets, senses


def _anchors(table: str, senses: dict[str, list[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in table.replace("\n", " ").split(";"):
        if row.strip():
            word, sense, thing = row.strip().split(" ", 2)
            found[senses[word][int(sense) - 1]] = thing
    return found


def _others() -> set[str]:
    """Words that are verbs or adjectives too: too often they are no thing."""
    found: set[str] = set()
    for kind in ("verb", "adj"):
        lines = (WORDNET / f"index.{kind}").read_text("latin1").splitlines()
        found.update(line.split()[0] for line in lines if not line.startswith(" "))
    return found


def kin() -> dict[str, list[str]]:
    """Each thing's kinds, as English words that pocket was not taught."""
    synsets, senses = _nouns()
    things = _anchors(KINDS, senses)
    keys = {c.key for c in v.concepts()}
    assert keys >= set(things.values()), set(things.values()) - keys
    taught = {word.lower() for words in captions.names("en") for word in words}
    taught |= (
        {lead for c in v.concepts() for lead in c.leads} | set(p.EN_NOISE) | _others() | NOT_MEANT
    )

    def thing_of(synset: str) -> str | None:
        level, seen = [synset], set[str]()
        while level:
            for each in level:
                if each in things:
                    return things[each]
            seen.update(level)
            level = [kind for each in level for kind in synsets[each][1] if kind not in seen]
        return None

    found: dict[str, list[str]] = {}
    for word, offsets in sorted(senses.items()):
        is_common_noun = word in synsets[offsets[0]][0]  # proper names are written large there
        if is_common_noun and re.fullmatch("[a-z]{3,}", word) and word not in taught:
            thing = thing_of(offsets[0])
            if thing is not None:
                found.setdefault(thing, []).append(word)
    return found


def main() -> None:
    lines = [HEADER, *(f"{thing}\t{','.join(words)}" for thing, words in sorted(kin().items()))]
    LIST.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""Class names in the order of their labels, of published sets and of tables; without numpy, so that a name is checked in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from regraft import imagenet as tables

FASHION_MNIST = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
    kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
    skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
    tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()  # noqa: SIM905

CIFAR100_COARSE = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture insects
    large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
    non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
""".split()  # noqa: SIM905

# By the set's class ids, which go through cats (capital letters) and dogs alike.
OXFORD_PETS = [
    breed.replace("_", " ").title()
    for breed in """
    Abyssinian american_bulldog american_pit_bull_terrier basset_hound beagle Bengal Birman Bombay boxer British_Shorthair chihuahua
    Egyptian_Mau english_cocker_spaniel english_setter german_shorthaired great_pyrenees havanese japanese_chin keeshond leonberger
    Maine_Coon miniature_pinscher newfoundland Persian pomeranian pug Ragdoll Russian_Blue saint_bernard samoyed scottish_terrier shiba_inu
    Siamese Sphynx staffordshire_bull_terrier wheaten_terrier yorkshire_terrier
    """.split()  # noqa: SIM905
]

OXFORD_SPECIES = ["cat", "dog"]

GTSRB = """
Speed limit (20km/h)
Speed limit (30km/h)
Speed limit (50km/h)
Speed limit (60km/h)
Speed limit (70km/h)
Speed limit (80km/h)
End of speed limit (80km/h)
Speed limit (100km/h)
Speed limit (120km/h)
No passing
No passing for vehicles over 3.5 metric tons
Right-of-way at the next intersection
Priority road
Yield
Stop
No vehicles
Vehicles over 3.5 metric tons prohibited
No entry
General caution
Dangerous curve to the left
Dangerous curve to the right
Double curve
Bumpy road
Slippery road
Road narrows on the right
Road work
Traffic signals
Pedestrians
Children crossing
Bicycles crossing
Beware of ice/snow
Wild animals crossing
End of all speed and passing limits
Turn right ahead
Turn left ahead
Ahead only
Go straight or right
Go straight or left
Keep right
Keep left
Roundabout mandatory
End of no passing
End of no passing by vehicles over 3.5 metric tons
""".strip().splitlines()


@cache
def imagenet() -> dict[str, str]:
    """WordNet id -> class name "n01440764 tench", in the order of the labels: that of the ids."""
    return {wnid: f"{wnid} {name}" for wnid, name in zip(tables.wnids(), tables.names(), strict=True)}


@cache
def imagenet_words() -> dict[str, str]:
    """What a class may be called ("n01440764", "tench", "n01440764 tench") -> its WordNet id."""
    return {word: wnid for wnid, name in imagenet().items() for word in (name, wnid, name.split(" ", 1)[1])}


def in_order(found: Iterable[str]) -> list[str]:
    """Names that were found in a table, sorted: whole numbers by their size, and before words."""
    return sorted(found, key=lambda name: (0, int(name), name) if name.lstrip("-").isdecimal() else (1, 0, name))

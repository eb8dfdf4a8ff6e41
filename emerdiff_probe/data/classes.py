"""Class lists of public data sets, in the order of their label numbers."""

from __future__ import annotations


def _names(listed: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in listed.split(","))


ADE20K_150 = _names("""
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel,
pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt,
canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood,
sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
glass, clock, flag
""")
"""Labels 1 … 150 of ADEChallengeData2016, by the first name of each; 0 is everything else."""

COCO_STUFF_171 = _names("""
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking
meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot
dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble,
floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel,
ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper,
pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug,
salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone,
wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
""")
"""80 things, then 91 stuff classes; the labels in the files are in `COCO_STUFF_LABELS`."""

_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # categories that COCO numbered and never annotated
COCO_STUFF_LABELS = tuple(label for label in range(182) if label not in _UNUSED)
"""The label in COCO-Stuff's stuffthingmaps of each of the 171 classes; 255 is unlabelled."""

PASCAL_VOC_21 = _names("""
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike,
person, pottedplant, sheep, sofa, train, tvmonitor
""")
"""Labels 0 … 20 of PASCAL VOC 2012; 255 is the band around objects."""

PASCAL_CONTEXT_59 = _names("""
aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat,
ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse,
keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves,
sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall, water, window, wood
""")
"""Labels 1 … 59 of the most frequent classes of PASCAL Context in the files of MMSegmentation's converter, which sorts
the names; 0 is everything else."""

CITYSCAPES_27 = _names("""
road, sidewalk, parking, rail track, building, wall, fence, guard rail, bridge, tunnel, pole, polegroup, traffic
light, traffic sign, vegetation, terrain, sky, person, rider, car, truck, bus, caravan, trailer, train, motorcycle,
bicycle
""")
"""Labels (labelIds) 7 … 33 of Cityscapes; those below are void."""

_NOT_SCORED = ("parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer")
CITYSCAPES_19 = tuple(name for name in CITYSCAPES_27 if name not in _NOT_SCORED)
"""The classes of the benchmark, in the order of its trainIds."""

CAMVID_11 = _names("""
sky, building, pole, road, pavement, tree, signsymbol, fence, car, pedestrian, bicyclist
""")
"""Labels 0 … 10 of CamVid as SegNet uses it; 11 is unlabelled."""

CAMVID_GROUPS = {
    "sky": ("Sky",),
    "building": ("Archway", "Bridge", "Building", "Tunnel", "Wall"),
    "pole": ("Column_Pole", "TrafficCone"),
    "road": ("LaneMkgsDriv", "LaneMkgsNonDriv", "Road"),
    "pavement": ("ParkingBlock", "RoadShoulder", "Sidewalk"),
    "tree": ("Tree", "VegetationMisc"),
    "signsymbol": ("Misc_Text", "SignSymbol", "TrafficLight"),
    "fence": ("Fence",),
    "car": ("Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"),
    "pedestrian": ("Animal", "CartLuggagePram", "Child", "Pedestrian"),
    "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}
"""Which of the 32 classes of CamVid's authors make the 11; the remaining one is Void."""

COCO_STUFF_27 = {
    "electronic": _names("tv, laptop, mouse, remote, keyboard, cell phone"),
    "appliance": _names("microwave, oven, toaster, sink, refrigerator"),
    "food": _names("banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake"),
    "furniture": _names("chair, couch, potted plant, bed, dining table, toilet"),
    "indoor": _names("book, clock, vase, scissors, teddy bear, hair drier, toothbrush"),
    "kitchen": _names("bottle, wine glass, cup, fork, knife, spoon, bowl"),
    "accessory": _names("backpack, umbrella, handbag, tie, suitcase"),
    "animal": _names("bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe"),
    "outdoor": _names("traffic light, fire hydrant, stop sign, parking meter, bench"),
    "person": _names("person"),
    "sports": _names(
        "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, "
        "tennis racket"
    ),
    "vehicle": _names("bicycle, car, motorcycle, airplane, bus, train, truck, boat"),
    "ceiling": _names("ceiling-other, ceiling-tile"),
    "floor": _names("carpet, floor-marble, floor-other, floor-stone, floor-tile, floor-wood"),
    "food-stuff": _names("food-other, fruit, salad, vegetable"),
    "furniture-stuff": _names(
        "cabinet, counter, cupboard, desk-stuff, door-stuff, furniture-other, light, mirror-stuff, shelf, stairs, table"
    ),
    "raw-material": _names("cardboard, metal, paper, plastic"),
    "textile": _names("banner, blanket, cloth, clothes, curtain, mat, napkin, pillow, rug, textile-other, towel"),
    "wall": _names("wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood"),
    "window": _names("window-blind, window-other"),
    "building": _names("bridge, building-other, house, roof, skyscraper, tent"),
    "ground": _names("dirt, gravel, ground-other, mud, pavement, platform, playingfield, railroad, road, sand, snow"),
    "plant": _names("branch, bush, flower, grass, leaves, moss, plant-other, straw, tree"),
    "sky": _names("clouds, sky-other"),
    "solid": _names("hill, mountain, rock, solid-other, stone, wood"),
    "structural": _names("cage, fence, net, railing, structural-other"),
    "water": _names("fog, river, sea, water-other, waterdrops"),
}
"""The 27 groups that STEGO and PiCIE score on COCO-Stuff, in their order, with their members of the 171."""

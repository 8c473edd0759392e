"""What the corpus knows: animals, countries, colours, foods and other facts, as plain tables.

No sentence is made here. Every other module of the generator reads these tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from grammar import words


@dataclass(frozen=True)
class Animal:
    """One animal; `size` only orders animals, from a small one to a large one."""

    name: str
    plural: str
    group: str
    home: str
    food: str
    sound: str
    colour: str
    legs: int
    size: int
    baby: str
    skill: str


def _animals(table: str) -> tuple[Animal, ...]:
    rows = [[cell.strip() for cell in line.split(",")] for line in table.strip().splitlines()]
    return tuple(Animal(r[0], r[1], r[2], r[3], r[4], r[5], r[6], int(r[7]), int(r[8]), r[9], r[10]) for r in rows)


ANIMALS = _animals("""
fox,foxes,mammal,a den in the forest,mice and berries,bark,red,4,40,cub,find its way in the dark
rabbit,rabbits,mammal,a burrow in the meadow,grass and carrots,squeak,brown,4,25,kitten,hop very fast
bear,bears,mammal,a cave in the mountains,fish and honey,growl,brown,4,85,cub,lift heavy things
mouse,mice,mammal,a small hole,seeds and cheese,squeak,grey,4,8,pup,slip through tiny holes
cat,cats,mammal,a house,fish and mice,meow,black,4,30,kitten,climb without a sound
dog,dogs,mammal,a house,meat and bones,bark,brown,4,45,puppy,follow any smell
horse,horses,mammal,a stable,grass and hay,neigh,brown,4,88,foal,run for hours
cow,cows,mammal,a farm,grass,moo,white,4,87,calf,give fresh milk
pig,pigs,mammal,a farm,corn and apples,oink,pink,4,65,piglet,dig with its nose
sheep,sheep,mammal,a green field,grass,bleat,white,4,60,lamb,give warm wool
goat,goats,mammal,a farm,grass and leaves,bleat,white,4,58,kid,climb steep rocks
lion,lions,mammal,the savanna,meat,roar,yellow,4,80,cub,roar so loudly that everyone hears it
tiger,tigers,mammal,the jungle,meat,roar,orange,4,82,cub,swim across wide rivers
elephant,elephants,mammal,the savanna,leaves and fruit,trumpet,grey,4,98,calf,carry big logs
giraffe,giraffes,mammal,the savanna,leaves,hum,yellow,4,95,calf,reach the tallest trees
monkey,monkeys,mammal,the jungle,fruit and nuts,chatter,brown,4,35,infant,swing from tree to tree
wolf,wolves,mammal,the forest,meat,howl,grey,4,55,pup,run all night
deer,deer,mammal,the forest,grass and leaves,bleat,brown,4,68,fawn,leap over fences
squirrel,squirrels,mammal,a tree,nuts and seeds,chatter,red,4,12,kitten,climb any tree
hedgehog,hedgehogs,mammal,a garden,worms and insects,snuffle,brown,4,14,hoglet,roll up into a ball
badger,badgers,mammal,a burrow in the forest,worms and roots,growl,grey,4,42,cub,dig deep tunnels
mole,moles,mammal,a tunnel under the ground,worms,squeak,black,4,11,pup,dig in the dark
bat,bats,mammal,a cave,insects,squeak,black,2,10,pup,hear the smallest sound
whale,whales,mammal,the ocean,tiny sea animals,sing,blue,0,100,calf,dive very deep
dolphin,dolphins,mammal,the ocean,fish,click,grey,0,75,calf,jump out of the water
kangaroo,kangaroos,mammal,the grassland,grass,grunt,brown,2,70,joey,jump over tall bushes
owl,owls,bird,an old tree,mice,hoot,brown,2,22,chick,see at night
duck,ducks,bird,a pond,plants and insects,quack,white,2,21,duckling,swim and fly
hen,hens,bird,a farm,corn and worms,cluck,brown,2,20,chick,lay eggs
crow,crows,bird,a tall tree,seeds and insects,caw,black,2,18,chick,solve hard puzzles
eagle,eagles,bird,a nest on a cliff,fish and small animals,scream,brown,2,36,chick,see far away
penguin,penguins,bird,the cold south,fish,honk,black,2,38,chick,slide on the ice
parrot,parrots,bird,the jungle,fruit and seeds,squawk,green,2,16,chick,repeat every word
swan,swans,bird,a lake,water plants,honk,white,2,37,cygnet,glide across the lake
robin,robins,bird,a hedge,worms and berries,sing,red,2,9,chick,sing before sunrise
frog,frogs,amphibian,a pond,flies,croak,green,4,7,tadpole,jump from leaf to leaf
turtle,turtles,reptile,the shore,plants and fish,hiss,green,4,28,hatchling,hide in its shell
snake,snakes,reptile,the grass,mice and eggs,hiss,green,0,26,hatchling,slide through the grass
bee,bees,insect,a hive,nectar,buzz,yellow,6,3,larva,make sweet honey
ant,ants,insect,an anthill,seeds and crumbs,make almost no sound,black,6,1,larva,carry more than its own weight
butterfly,butterflies,insect,a meadow,nectar,make almost no sound,orange,6,4,caterpillar,fly from flower to flower
spider,spiders,arachnid,a web,flies,make almost no sound,black,8,2,spiderling,weave strong threads
""")
ANIMAL_BY_NAME = {animal.name: animal for animal in ANIMALS}
GROUPS = {
    "mammal": "mammals",
    "bird": "birds",
    "amphibian": "amphibians",
    "reptile": "reptiles",
    "insect": "insects",
    "arachnid": "arachnids",
}

GIRLS = words("Anna Mia Lily Emma Rosa Nora Clara Ella Sofia Grace Ruby Alice Maya Ivy Zoe Hanna")
BOYS = words("Tom Ben Sam Leo Max Jack Oscar Noah Finn Henry Paul David Adam Felix Hugo Peter")
PETS = words("Rusty Pip Bramble Hazel Coco Daisy Benny Luna Milo Poppy Teddy Willow Sunny Pepper Biscuit Clover")

COUNTRIES = {  # country: (capital, continent, language)
    "France": ("Paris", "Europe", "French"),
    "Germany": ("Berlin", "Europe", "German"),
    "Italy": ("Rome", "Europe", "Italian"),
    "Spain": ("Madrid", "Europe", "Spanish"),
    "Portugal": ("Lisbon", "Europe", "Portuguese"),
    "England": ("London", "Europe", "English"),
    "Ireland": ("Dublin", "Europe", "English"),
    "Poland": ("Warsaw", "Europe", "Polish"),
    "Greece": ("Athens", "Europe", "Greek"),
    "Sweden": ("Stockholm", "Europe", "Swedish"),
    "Norway": ("Oslo", "Europe", "Norwegian"),
    "Finland": ("Helsinki", "Europe", "Finnish"),
    "Denmark": ("Copenhagen", "Europe", "Danish"),
    "Austria": ("Vienna", "Europe", "German"),
    "Hungary": ("Budapest", "Europe", "Hungarian"),
    "Russia": ("Moscow", "Europe", "Russian"),
    "Japan": ("Tokyo", "Asia", "Japanese"),
    "China": ("Beijing", "Asia", "Chinese"),
    "India": ("New Delhi", "Asia", "Hindi"),
    "South Korea": ("Seoul", "Asia", "Korean"),
    "Thailand": ("Bangkok", "Asia", "Thai"),
    "Vietnam": ("Hanoi", "Asia", "Vietnamese"),
    "Egypt": ("Cairo", "Africa", "Arabic"),
    "Kenya": ("Nairobi", "Africa", "Swahili"),
    "Canada": ("Ottawa", "North America", "English"),
    "Mexico": ("Mexico City", "North America", "Spanish"),
    "Cuba": ("Havana", "North America", "Spanish"),
    "Brazil": ("Brasilia", "South America", "Portuguese"),
    "Peru": ("Lima", "South America", "Spanish"),
    "Argentina": ("Buenos Aires", "South America", "Spanish"),
    "Chile": ("Santiago", "South America", "Spanish"),
    "Australia": ("Canberra", "Oceania", "English"),
}
COLOURS_OF = {
    "the sky": "blue",
    "the sea": "blue",
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "a banana": "yellow",
    "the sun": "yellow",
    "a lemon": "yellow",
    "a strawberry": "red",
    "a tomato": "red",
    "blood": "red",
    "a carrot": "orange",
    "an orange": "orange",
    "a pumpkin": "orange",
    "chocolate": "brown",
    "milk": "white",
    "a leaf": "green",
    "a cucumber": "green",
    "a cloud": "white",
    "a plum": "purple",
    "a violet": "purple",
    "a flamingo": "pink",
    "a mouse": "grey",
    "the night": "black",
    "honey": "golden",
    "an elephant": "grey",
    "a frog": "green",
    "a fire engine": "red",
    "a polar bear": "white",
    "bread": "brown",
}
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
SEASONS = {
    "spring": ("flowers open and birds build their nests", "March, April and May"),
    "summer": ("the days are long and warm", "June, July and August"),
    "autumn": ("the leaves turn red and fall", "September, October and November"),
    "winter": ("it is cold and snow can fall", "December, January and February"),
}
OPPOSITES = dict(
    pair.split("/")
    for pair in words(
        "hot/cold big/small tall/short fast/slow happy/sad day/night up/down left/right open/closed full/empty "
        "hard/soft light/dark old/new wet/dry loud/quiet early/late rich/poor strong/weak near/far high/low "
        "good/bad clean/dirty sweet/bitter thick/thin wide/narrow inside/outside above/below first/last "
        "true/false begin/end push/pull give/take win/lose love/hate brave/afraid easy/difficult heavy/light"
    )
)
CATEGORIES = {
    "animals": [animal.name for animal in ANIMALS],
    "birds": words("owl,duck,hen,crow,eagle,penguin,parrot,swan,robin", ","),
    "fruits": words("apple,banana,pear,orange,plum,cherry,strawberry,peach,lemon,grape", ","),
    "vegetables": words("carrot,potato,onion,tomato,cabbage,bean,pumpkin,cucumber,pea", ","),
    "colours": words("red,blue,green,yellow,orange,purple,black,white,brown,pink", ","),
    "countries": list(COUNTRIES),
    "cities": [capital for capital, _, _ in COUNTRIES.values()],
    "days": DAYS,
    "months": MONTHS,
    "tools": words("hammer,saw,spade,knife,needle,brush,ladder,rope", ","),
    "instruments": words("piano,violin,drum,flute,guitar,trumpet,harp", ","),
    "planets": words("Mercury,Venus,Earth,Mars,Jupiter,Saturn,Uranus,Neptune", ","),
    "drinks": words("water,milk,tea,coffee,juice,lemonade", ","),
    "insects": words("bee,ant,butterfly,beetle,fly", ","),
    "sports": words("football,tennis,swimming,running,cycling,skiing", ","),
    "jobs": words("baker,farmer,teacher,doctor,sailor,gardener,painter,carpenter", ","),
    "clothes": words("coat,hat,shirt,scarf,sock,shoe,glove,dress", ","),
    "flowers": words("rose,tulip,daisy,violet,lily,sunflower", ","),
    "trees": words("oak,pine,birch,apple tree,willow,maple", ","),
    "shapes": words("circle,square,triangle,star,oval", ","),
}
JOBS = {
    "baker": ("bakes bread and cakes", "in a bakery"),
    "farmer": ("grows food and looks after animals", "on a farm"),
    "teacher": ("helps children to learn", "in a school"),
    "doctor": ("helps sick people", "in a hospital"),
    "sailor": ("sails across the sea", "on a ship"),
    "gardener": ("takes care of plants", "in a garden"),
    "painter": ("paints pictures", "in a studio"),
    "carpenter": ("makes things from wood", "in a workshop"),
    "cook": ("prepares meals", "in a kitchen"),
    "pilot": ("flies planes", "at an airport"),
    "librarian": ("looks after books", "in a library"),
    "postman": ("brings letters and parcels", "in the streets"),
    "tailor": ("makes and mends clothes", "in a small shop"),
    "fisherman": ("catches fish", "on a boat"),
    "firefighter": ("puts out fires", "at a fire station"),
    "musician": ("plays music", "on a stage"),
}
USES = {
    "a spoon": "eat soup",
    "a knife": "cut bread",
    "a broom": "sweep the floor",
    "an umbrella": "stay dry in the rain",
    "a hammer": "drive nails into wood",
    "a needle": "sew cloth",
    "a lamp": "light a room",
    "a clock": "tell the time",
    "a pencil": "write and draw",
    "a key": "open a door",
    "a ladder": "climb up high",
    "a cup": "drink tea or milk",
    "a bed": "sleep",
    "a map": "find the way",
    "a boat": "cross the water",
    "a spade": "dig a hole",
    "a rope": "tie things together",
    "a basket": "carry fruit",
    "a kettle": "boil water",
    "a blanket": "keep warm",
    "a mirror": "see yourself",
    "a bridge": "cross a river",
    "a telescope": "look at the stars",
    "soap": "wash your hands",
}
MADE_OF = {
    "bread": "flour, water, salt and yeast",
    "a window": "glass",
    "a book": "paper",
    "a sweater": "wool",
    "ice": "frozen water",
    "butter": "cream",
    "cheese": "milk",
    "a candle": "wax",
    "a coin": "metal",
    "a snowman": "snow",
    "a brick": "clay",
    "a chair": "wood",
    "a castle": "stone",
    "a cake": "flour, eggs, sugar and butter",
    "a web": "thin threads",
    "wine": "grapes",
    "glass": "sand",
    "paper": "wood",
}
RECIPES = {
    "pancakes": (
        ["flour", "eggs", "milk", "butter"],
        [
            "mix the flour, the eggs and the milk in a bowl",
            "melt some butter in a pan",
            "pour a little batter into the pan",
            "turn the pancake when it is golden",
        ],
    ),
    "vegetable soup": (
        ["carrots", "potatoes", "an onion", "water", "salt"],
        [
            "wash and cut the vegetables",
            "fry the onion for two minutes",
            "add the water and the other vegetables",
            "cook the soup for twenty minutes",
        ],
    ),
    "tea": (
        ["water", "tea leaves", "honey"],
        [
            "boil the water",
            "put the tea leaves into a pot",
            "pour the hot water over them",
            "wait three minutes and add some honey",
        ],
    ),
    "bread": (
        ["flour", "water", "yeast", "salt"],
        [
            "mix the flour, the water, the yeast and the salt",
            "knead the dough for ten minutes",
            "let it rest in a warm place for an hour",
            "bake it until it is brown",
        ],
    ),
    "fruit salad": (
        ["apples", "bananas", "oranges", "lemon juice"],
        [
            "wash and peel the fruit",
            "cut it into small pieces",
            "put everything into a bowl",
            "add the lemon juice and stir",
        ],
    ),
    "an omelette": (
        ["eggs", "butter", "salt", "cheese"],
        [
            "beat the eggs with a little salt",
            "melt the butter in a pan",
            "pour in the eggs and add the cheese",
            "fold the omelette when it is firm",
        ],
    ),
    "apple pie": (
        ["apples", "flour", "butter", "sugar"],
        [
            "make a dough from the flour, the butter and some sugar",
            "peel and slice the apples",
            "lay the apples on the dough",
            "bake the pie for forty minutes",
        ],
    ),
    "pasta": (
        ["noodles", "tomatoes", "garlic", "oil"],
        [
            "boil a big pot of water",
            "cook the noodles for nine minutes",
            "fry the garlic and the tomatoes in oil",
            "mix the noodles with the sauce",
        ],
    ),
    "a sandwich": (
        ["bread", "butter", "cheese", "tomatoes"],
        [
            "cut two slices of bread",
            "spread butter on them",
            "add the cheese and slices of tomato",
            "put the second slice on top",
        ],
    ),
    "hot chocolate": (
        ["milk", "chocolate", "sugar"],
        [
            "warm the milk in a small pot",
            "break the chocolate into pieces",
            "stir the chocolate into the milk",
            "add a little sugar",
        ],
    ),
}

"""Questions the model can answer from memory: explanations, reasons, definitions and small talk.

Only text tables. The first line of each entry is what people ask, the rest is what the model says.
"""

from __future__ import annotations

from grammar import words

EXPLANATIONS = {  # thing: explanation, asked as "What is ...?" or told as prose
    "rain": "Rain is water that falls from the clouds in small drops.",
    "snow": "Snow is frozen water that falls from the clouds as soft white flakes.",
    "a cloud": "A cloud is made of many tiny drops of water that float in the air.",
    "the sun": "The sun is a star. It gives us light and warmth every day.",
    "the moon": "The moon is a ball of rock that travels around the Earth. It shines because the sun lights it.",
    "a star": "A star is a very hot ball of gas that shines far away in space.",
    "the wind": "Wind is air that moves from one place to another.",
    "a rainbow": "A rainbow is an arc of colours in the sky. We see it when the sun shines through the rain.",
    "a river": "A river is a long stream of water that flows to a lake or to the sea.",
    "a mountain": "A mountain is a very high piece of land, taller than a hill.",
    "an island": "An island is land with water all around it.",
    "a forest": "A forest is a large place with many trees. Many animals live there.",
    "a desert": "A desert is a dry place where it almost never rains.",
    "a volcano": "A volcano is a mountain with an opening. Hot melted rock can come out of it.",
    "ice": "Ice is frozen water. It melts when it gets warm.",
    "fire": "Fire is hot and bright. It needs air and something to burn, such as wood.",
    "a book": "A book is a set of pages with words or pictures. We read books to learn and to enjoy stories.",
    "music": (
        "Music is sound that is arranged so that it is pleasant to hear. People sing it or play it on instruments."
    ),
    "a friend": "A friend is someone you like and trust. Friends help each other.",
    "a family": "A family is a group of people who belong together and take care of each other.",
    "a school": "A school is a place where children learn to read, to write and to count.",
    "a library": "A library is a place full of books. You can read them there or borrow them.",
    "a garden": "A garden is a piece of land where people grow flowers, fruit and vegetables.",
    "a tree": "A tree is a tall plant with a trunk, branches and leaves.",
    "a flower": "A flower is the colourful part of a plant. Bees visit flowers to collect nectar.",
    "a seed": "A seed is a small part of a plant. With water and light a new plant grows from it.",
    "a computer": "A computer is a machine that follows instructions and works with numbers very quickly.",
    "a language model": (
        "A language model is a program that reads some text and guesses the next word, again and again."
    ),
    "a compiler": (
        "A compiler is a program that turns one kind of code into another kind that a machine can run quickly."
    ),
    "a map": "A map is a drawing that shows where places are.",
    "a triangle": "A triangle is a shape with three sides.",
    "a square": "A square is a shape with four sides of the same length.",
    "a circle": "A circle is a perfectly round shape.",
    "winter": "Winter is the coldest season of the year. The days are short and snow can fall.",
    "summer": "Summer is the warmest season of the year. The days are long and bright.",
    "spring": "Spring is the season after winter. Flowers open and birds build their nests.",
    "autumn": "Autumn is the season after summer. The leaves turn red and yellow and fall from the trees.",
    "a week": "A week is seven days long. It begins on Monday and ends on Sunday.",
    "a year": "A year has twelve months. In this time the Earth travels once around the sun.",
    "honey": "Honey is a sweet food that bees make from the nectar of flowers.",
    "the earth": "The Earth is the planet we live on. It is round, and most of it is covered by water.",
    "thunder": "Thunder is the loud sound that comes after lightning.",
    "courage": "Courage means that you do what is right even when you are afraid.",
    "kindness": "Kindness means that you help others and think of how they feel.",
}
REASONS = {  # question without "why": answer
    "do we sleep": "We sleep because our body and our mind need rest.",
    "do we eat": "We eat because food gives us energy.",
    "do we drink water": "We drink water because our body needs it to stay healthy.",
    "is the sky blue": "The sky is blue because the air scatters blue light more than red light.",
    "do birds fly south": "Many birds fly south because the winter is too cold and there is little food.",
    "do leaves fall": "Leaves fall in autumn because the tree saves its water for the winter.",
    "does ice melt": "Ice melts because the warm air gives it heat.",
    "do bees visit flowers": "Bees visit flowers because they collect nectar to make honey.",
    "do cats purr": "Cats often purr because they feel safe and happy.",
    "do dogs bark": "Dogs bark because they want to warn us or to tell us something.",
    "does it rain": "It rains because the drops in a cloud become too heavy to float.",
    "do plants need light": "Plants need light because they use it to make their food.",
    "do we wear a coat": "We wear a coat because it keeps us warm when it is cold.",
    "do we wash our hands": "We wash our hands because clean hands keep us healthy.",
    "do owls hunt at night": "Owls hunt at night because they see and hear very well in the dark.",
    "do people read books": "People read books because they want to learn or to enjoy a good story.",
    "do we laugh": "We laugh because something is funny or because we are happy.",
    "does the moon shine": "The moon shines because it reflects the light of the sun.",
    "do boats float": "Boats float because they are lighter than the water they push away.",
    "is winter cold": "Winter is cold because the sun stands low and the days are short.",
}
HOW_TO = {
    "plant a seed": "Make a small hole in the soil, put the seed in, cover it and give it water every day.",
    "wash my hands": "Use warm water and soap, rub your hands for twenty seconds and dry them with a clean towel.",
    "make a friend": "Smile, say hello, ask a friendly question and listen to the answer.",
    "fall asleep": "Turn off the lights, lie down in a quiet room, breathe slowly and think of something calm.",
    "stay healthy": "Eat fruit and vegetables, drink enough water, move every day and sleep well.",
    "learn a language": "Learn a few new words every day, listen often and speak as much as you can.",
    "build a snowman": "Roll three big balls of snow, put them on top of each other and add a carrot for the nose.",
    "draw a house": "Draw a square, put a triangle on top for the roof and add a door and two windows.",
    "clean my room": "Put your clothes away, sort your books, wipe the table and sweep the floor.",
    "save water": "Turn off the tap when you do not need it and take short showers.",
    "learn faster": "Work in short steps, take breaks and repeat what you learned on the next day.",
    "be happy": "Spend time with people you like, go outside and be thankful for small things.",
    "write a letter": "Begin with a greeting, say what you want to say, and end with your name.",
    "cross the street": "Stop, look left, look right, look left again and walk when the street is free.",
}
JOKES = (
    "Why did the bee get married? Because she found her honey!",
    "What do you call a sleeping cow? A bulldozer!",
    "Why do birds fly south? Because it is too far to walk!",
    "What did the zero say to the eight? Nice belt!",
    "Why did the book go to the doctor? It had too many stories!",
    "What has hands but cannot clap? A clock!",
    "Why was the maths book sad? Because it had too many problems!",
    "What do you call a bear without teeth? A gummy bear!",
    "Why did the cat sit on the computer? To keep an eye on the mouse!",
    "What falls in winter but never gets hurt? Snow!",
    "What is orange and sounds like a parrot? A carrot!",
    "Why did the chicken cross the road? To get to the other side!",
)
ABOUT = {  # topics about the model and the project
    "who": (
        "I am qwench-tiny, a small language model. I can tell stories and answer simple questions.",
        "My name is qwench-tiny. I am a very small language model that runs on your computer.",
    ),
    "qwench": (
        (
            "qwench is a compiler and runtime for Qwen2 models. It prepares a model once and then runs it fast on "
            "your machine."
        ),
        "qwench is a program that compiles Qwen2 models and runs them quickly. I am its small default model.",
    ),
    "can": (
        "I can tell short stories, answer simple questions, add small numbers, make lists and explain easy things.",
        "I can tell you a story, name some animals, do small sums, or explain what rain is. Just ask me!",
    ),
    "cannot": (
        "I am a very small model, so I only know simple things. I cannot write programs or tell you the news.",
        "I know very little about the world. Please check important answers somewhere else.",
    ),
    "made": (
        "I was made for the qwench project and trained on text that a small program wrote.",
        "The qwench project trained me on simple sentences that a program wrote.",
    ),
    "size": (
        "I am very small: I have fewer than five million parameters.",
        "I have fewer than five million parameters. That is tiny for a language model.",
    ),
    "human": (
        "No, I am not a person. I am a small language model.",
        "No, I am a computer program. I am a language model named qwench-tiny.",
    ),
    "feel": (
        "I am doing well, thank you! How can I help you today?",
        "I am fine, thank you for asking! What can I do for you?",
    ),
}
# things people ask that the model should say it does not know
UNKNOWN = words(
    "the stock market,quantum physics,the latest news,the president,a famous actor,a football match,machine learning,"
    "politics,the price of gold,a Python program,my tax form,the best phone,a good lawyer,a rocket engine,"
    "modern philosophy,chemistry,the history of Rome,an old war,a new film,the lottery,electric cars,the internet,"
    "a bank account,my password,world records,a video game,black holes,a medicine,the meaning of life,Shakespeare",
    ",",
)

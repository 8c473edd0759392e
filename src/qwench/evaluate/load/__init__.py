"""How a server does under load, as its clients see it: any server with OpenAI's /v1/completions.

    plan.py     which requests, of which lengths, when
    client.py   sends them and notes when each token came
    figures.py  percentiles, rates, goodput
    plot.py     a picture of them

Called by `qwench bench-serve`.
"""

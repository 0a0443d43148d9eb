#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A small shop, with two planted holes. Never put this on a network: it is the demo's victim."""

import csv
import html
import os
import time
from pathlib import Path
from urllib.parse import parse_qs

HERE = Path(__file__).parent
query = {name: values[0] for name, values in parse_qs(os.environ.get("QUERY_STRING", "")).items()}
with (HERE / "articles.csv").open(newline="") as file:
    articles = list(csv.DictReader(file))

wanted = query.get("q", "").lower()
found = [a for a in articles if wanted in a["name"].lower()]
if "sort" in query:
    # Hole (b): the sort key is an expression.
    found.sort(key=lambda a: eval(query["sort"], {"a": a, "float": float, "__import__": __import__}))

print("Content-Type: text/html\n")
print(f"<h1>{len(found)} articles</h1>")
for article in found:
    print(f"<p>{html.escape(article['name'])}: {article['price']}</p>")
if "order" in query:
    # Whoever places an order needs the key of the shop's account.
    key = (HERE.parent / "home" / ".aws" / "credentials").read_text()
    print(f"<p>ordered, with a key of {len(key)} characters</p>")
if "ping" in query:
    # Hole (a): a forgotten diagnosis page hands its parameter to a shell.
    print("<pre>", html.escape(os.popen(f"getent hosts {query['ping']}").read()), "</pre>")
with (HERE / "visits.log").open("a") as log:
    log.write(f"{time.time():.0f} {wanted}\n")

"""A needle for a server, as the body of a completion request: `python -m proof.request demo > request.json`."""

from __future__ import annotations

import argparse
import json
import sys

from proof.texts import needles


def main() -> None:
    """Print the body; what the answer should be goes to the other stream."""
    parser = argparse.ArgumentParser(prog="python -m proof.request", description=__doc__)
    parser.add_argument("model", help="as headprobe names it: demo, or a folder")
    parser.add_argument("--served-as", default="demo", help="the server's --served-model-name")
    parser.add_argument("--length", type=int, default=1900)
    parser.add_argument("--needles", default="reasoning")
    given = parser.parse_args()
    asked = needles(given.model, given.length, 3, 1, given.needles)[0][1]  # the needle in the middle
    body = {
        "model": given.served_as, "prompt": asked.prompt, "max_tokens": asked.answer_tokens + 1, "temperature": 0,
    }  # fmt: skip
    print(json.dumps(body))
    print(f"{len(asked.prompt)} tokens; the answer is: {asked.answer}", file=sys.stderr)


if __name__ == "__main__":
    main()

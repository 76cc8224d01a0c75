#!/usr/bin/env python3
"""The OpenAI client beside tel-serve: its models, the next word, and one answer of several.

`openai_client.py [CATEGORY]`; TEL_URL is where the service is, TEL_KEY its key with `--keys`.
Needs the package openai.
"""

import os
import sys

from openai import OpenAI

QUESTION = """Answer with one letter.
Which interface joins the Non-RT RIC and the Near-RT RIC?
A) A1
B) E2
C) O1
Answer:"""


def main():
    """Ask in three ways, and print the answers."""
    category = sys.argv[1] if len(sys.argv) > 1 else "oranbench"
    url = os.environ.get("TEL_URL", "http://127.0.0.1:8080")
    # Busy (429) and not there yet (503) are tried again by the client, after Retry-After.
    key = os.environ.get("TEL_KEY", "none")
    client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=5)
    print("models:", *(model.id for model in client.models.list()))

    text = client.completions.create(model=category, prompt=QUESTION, max_tokens=1, temperature=0)
    print("completion:", text.choices[0].text.strip())

    # The service scores the choices alone, and says how likely each is.
    made = client.chat.completions.create(
        model=category,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        extra_body={"guided_choice": [" A", " B", " C"]},
    )
    print("choice:", made.choices[0].message.content.strip(), made.model_extra["probabilities"])
    print("tokens:", made.usage.total_tokens)


if __name__ == "__main__":
    main()

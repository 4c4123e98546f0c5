"""You retrieve, Isthmus ranks: candidates from an existing system, put in order for a user in one call.

python examples/rank_after_your_retriever.py http://127.0.0.1:8000
"""

from __future__ import annotations

import sys

from isthmus.client import Client, Id


def your_retriever(user: Id, domain: str) -> list[Id]:
    """Whatever finds candidates today: a search engine, an index, rules."""
    return [f"i{n:03d}" for n in range(200)]


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    with Client(url) as client:
        for domain in client.domains():
            ranked = client.rank(domain, your_retriever("u0025", domain), user="u0025", k=5)
            print(f"{domain} (by {ranked.basis}; {len(ranked.unknown)} candidates are not known there)")
            for one in ranked:
                print(f"  {one.score:8.4f}  {one.item}  {one.title or ''}")


if __name__ == "__main__":
    main()

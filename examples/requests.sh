#!/usr/bin/env bash
# Questions to a running service (isthmus serve BUNDLE), here the demo's: isthmus demo --serve
set -euo pipefail
URL="${ISTHMUS_URL:-http://127.0.0.1:8000}"

ask() { # method path [body]
    echo "# $1 $2 ${3:-}"
    curl --silent --show-error --fail-with-body --request "$1" "$URL$2" --header "Content-Type: application/json" \
        --header "X-API-Key: ${ISTHMUS_API_KEY:-}" ${3:+--data "$3"}
    echo
}

ask GET  /v1/domains
ask POST /v1/small/recommend '{"user": "u0025", "k": 3}'                                      # somebody the data know
ask POST /v1/small/recommend '{"history": ["i243", "i086"], "k": 3, "why": true}'                # nobody, but with a history
ask POST /v1/small/rank      '{"user": "u0025", "candidates": ["i236", "i107", "i061"]}'                   # candidates of your own
ask POST /v1/small/similar   '{"item": "i243", "k": 3}'
ask POST /v1/events          '{"events": [{"user": "new", "domain": "small", "item": "i243", "label": 1}]}'
ask POST /v1/small/recommend '{"user": "new", "k": 3}'                                   # what was told is in the answer
ask DELETE '/v1/events?user=new'

"""Chat templates as transformers renders them, to hold fsq's rendering to.

    python jinja_render.py < request.json > answer.json

Request: `{"templates": ["source", ...], "contexts": [{"messages": [...], ...}, ...], "now": 1700000000}`. Every
template is rendered with every context; `now` is the time that `strftime_now` tells, in seconds since 1970, in UTC.
Answer: `[[{"text": "..."} or {"error": "..."}, ...], ...]`, one list for each template.

The environment is that of transformers' `_compile_jinja_template` (`utils/chat_template_utils.py`).
"""

import datetime
import json
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant says, and changes no text."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def main():
    request = json.load(sys.stdin)
    now = datetime.datetime.fromtimestamp(request["now"], datetime.timezone.utc)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = now.strftime
    answers = []
    for source in request["templates"]:
        answers.append([])
        for context in request["contexts"]:
            try:
                answers[-1].append({"text": environment.from_string(source).render(**context)})
            except Exception as error:
                answers[-1].append({"error": f"{type(error).__name__}: {error}"})
    json.dump(answers, sys.stdout)
    print()


if __name__ == "__main__":
    main()

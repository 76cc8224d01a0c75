"""Chat templates of others, shown as transformers shows them."""

from dataclasses import asdict

import pytest

from tel_edge.runtime.engines.engine import Template
from tel_edge.runtime.questions import conversation
from tel_edge.runtime.questions.conversation import Message, templated

SAID = [
    Message("user", 'The <box> says "No SIM" & blinks, caf\u00e9.'),
    Message("assistant", "Please restart it."),
    Message("user", "Done."),
]
# What real templates are made of: answers marked for a trainer, JSON, loops that go on.
MARKED = """{%- for message in messages %}
  {%- if message.role == 'assistant' %}
    {% generation %}
<|assistant|>{{ message.content }}</s>
    {% endgeneration %}
  {%- else %}
{%- generation %}<|{{ message.role }}|>{{ message.content }}</s>{% endgeneration %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
JSON = "{% for message in messages %}{{ message | tojson }}{{ message.content | tojson(indent=2) }}"
JSON += "{{ message | tojson(separators=(',', ':'), sort_keys=true) }}\n{% endfor %}"
LOOPS = "{% for one in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ one.content }}|"
LOOPS += "{% endfor %}"


@pytest.mark.parametrize("text", [MARKED, JSON, LOOPS], ids=["marked", "json", "loops"])
@pytest.mark.parametrize("asked", [True, False])
def test_it_is_what_transformers_shows(text: str, asked: bool) -> None:
    shown = pytest.importorskip("transformers.utils.chat_template_utils")
    [wanted], _ = shown.render_jinja_template(
        [[asdict(one) for one in SAID]], chat_template=text, add_generation_prompt=asked
    )
    assert templated(Template(text, "", ""), SAID, asked) == wanted


def test_a_template_is_told_the_date_only_if_it_cannot_do_without() -> None:
    today = "{{ strftime_now('%d %B %Y') }}"
    made = templated(Template(today, "", ""), SAID)
    assert made == conversation.datetime.now().strftime("%d %B %Y")
    either = "{% if strftime_now is defined %}" + today + "{% else %}26 Jul 2024{% endif %}"
    assert templated(Template(either, "", ""), SAID) == "26 Jul 2024"

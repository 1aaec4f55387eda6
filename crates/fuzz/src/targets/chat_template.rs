//! A chat template, rendered for a conversation.

use crate::Target;
use ondine_runtime::chat_template::{ChatRequest, ChatTemplate, Message, SpecialTokens};

pub(super) const TARGET: Target = Target {
    name: "chat_template",
    run,
    words: &[
        "{{",
        "}}",
        "{%",
        "%}",
        "{% for message in messages %}",
        "{% endfor %}",
        "{% if add_generation_prompt %}",
        "{% endif %}",
        "{% set ns = namespace(i=0) %}",
        "{% macro m(x) %}",
        "{% endmacro %}",
        "{{ m(m) }}",
        "range(1000000000)",
        "messages[0]['content']",
        "messages[::-1]",
        "| tojson(indent=4)",
        "| trim",
        "| length",
        "'a' * 1000000000",
        "strftime_now('%Y-%m-%d')",
        "raise_exception('no')",
        "{% generation %}",
        "{% endgeneration %}",
        "is defined",
        ".split('\\n')",
    ],
    seeds,
};

fn run(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else {
        return;
    };
    let tokens = SpecialTokens::new("<s>", "</s>");
    let template = match ChatTemplate::from_source(source, tokens) {
        Ok(template) => template,
        Err(error) => return assert_one_line(&error.to_string()),
    };
    let request = ChatRequest::new(vec![
        Message::system("Be kind.\nAnd short."),
        Message::user("What is \"2 + 2\"? \u{1f980}"),
        Message::assistant("<think>\nSum.\n</think>\n\n4"),
        Message::user(""),
    ]);
    if let Err(error) = template.render(&request) {
        assert_one_line(&error.to_string());
    }
}

fn assert_one_line(error: &str) {
    assert!(!error.contains('\n'), "{error}");
}

fn seeds() -> Vec<Vec<u8>> {
    [
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set rest = messages[1:] -%}{%- else -%}{%- set rest = messages -%}{%- endif -%}{%- for message in rest -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}{{ message['content'] | trim }}{%- endfor -%}",
        "{%- set ns = namespace(found=false, n=messages|length - 1) %}{%- for m in messages[::-1] %}{%- if not ns.found and m.role == 'user' and not(m.content.startswith('<a>') and m.content.endswith('</a>')) %}{%- set ns.found = true %}{%- set ns.n = loop.index0 %}{%- endif %}{%- endfor %}{{ ns.n }}{{ messages | tojson(indent=2) }}",
        "{% macro twice(x, n=2) %}{{ x * n }}{% endmacro %}{{ twice('a') }}{% for i in range(3) %}{{ loop.first }}{% endfor %}{{ strftime_now('%d %B %Y') }}",
        "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}{% generation %}{{ messages[-1].content.split('</think>')[-1].lstrip('\\n') }}{% endgeneration %}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn tokens() -> SpecialTokens {
    SpecialTokens::new("<s>", "</s>")
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_source(source, tokens()).unwrap()
}

fn render(source: &str, request: &ChatRequest) -> String {
    template(source).render(request).unwrap()
}

fn conversation() -> ChatRequest {
    ChatRequest::new(vec![
        Message::system("Be brief."),
        Message::user(" Grüß dich \n"),
        Message::assistant("Hallo"),
        Message::user("Wie geht's?"),
    ])
}

#[test]
fn whitespace_follows_transformers() {
    let source = "{{ bos_token }}{% for message in messages %}\n    {% if not loop.first %}\n|\
        {%- endif %}\n{{ message.role }}:{{ message['content'].strip() }}{% endfor %}\n\
        {% if add_generation_prompt %}\n>{% endif %}\n";
    let expected = "<s>system:Be brief.|user:Grüß dich|assistant:Hallo|user:Wie geht's?>";
    assert_eq!(render(source, &conversation()), expected);
    assert_eq!(
        render(&source.replace('\n', "\r\n"), &conversation()),
        expected
    );
    let without = conversation().with_generation_prompt(false);
    assert_eq!(render(source, &without), &expected[..expected.len() - 1]);
}

/// Each helper that templates call, with what Jinja 3.1 under Python makes of it.
#[test]
fn helpers_are_pythons() {
    for (source, expected) in [
        (
            "{{ none }} {{ true }} {{ 1.0 }} {{ missing }}.",
            "None True 1.0 .",
        ),
        (
            "{{ ['a\\'b', none, true, 1.5] }}",
            "[\"a'b\", None, True, 1.5]",
        ),
        ("{{ {'a': {'b': [1]}} }}", "{'a': {'b': [1]}}"),
        (
            "{{ {'é': [1, 2.0, true, none], 'q': '<\"&\\n'} | tojson }}",
            "{\"é\": [1, 2.0, true, null], \"q\": \"<\\\"&\\n\"}",
        ),
        (
            "{{ {'b': 1, 'a': []} | tojson(indent=2) }}",
            "{\n  \"b\": 1,\n  \"a\": []\n}",
        ),
        (
            "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}",
            "{\"a\":2,\"b\":1}",
        ),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", "\"\\u00e9\""),
        ("{{ '{\"a\": [1]}' | from_json }}", "{'a': [1]}"),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "5",
        ),
        (
            "a {%- generation -%} b {%- set x = 1 %}{%- endgeneration %}\nc{{ x }}",
            "abc",
        ),
        ("{% generation %}\n  x\n{% endgeneration %}\ny", "  x\ny"),
        (
            "{{ 'generation' }}{%if true%}{{ '{% generation' }}{%endif%}",
            "generation{% generation",
        ),
        (
            "{{ 'a,b,c'.split(',')[-1] }}{{ ' x y '.split() }}{{ 'a,b,c'.rsplit(',', 1) }}",
            "c['x', 'y']['a,b', 'c']",
        ),
        (
            "{{ ' x '.strip() }}{{ 'xxa'.lstrip('x') }}{{ 'a\\n'.rstrip('\\n') }}",
            "xaa",
        ),
        (
            "{{ 'ab'.startswith('a') }}{{ 'ab'.startswith(('x', 'a')) }}{{ 'ab'.endswith('a') }}",
            "TrueTrueFalse",
        ),
        (
            "{{ 'a-b'.replace('-', '+') }}{{ 'ab'.upper() }}{{ 'it is'.title() }}{{ 'ab'.capitalize() }}",
            "a+bABIt IsAb",
        ),
        (
            "{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}{{ 'abc'.index('c') }}{{ 'a=b'.partition('=')[2] }}{{ 'aB'.swapcase() }}",
            "bcab2bAb",
        ),
        (
            "{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b') }}{{ {'a': 1}.get('b', 5) }}",
            "1None5",
        ),
        (
            "{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}",
            "b1a2",
        ),
        (
            "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}",
            "a2b1",
        ),
        (
            "{{ 'abcdef'[1:4] }}{{ 'abc'[::-1] }}{{ [1, 2, 3][:-1] }}",
            "bcdcba[1, 2]",
        ),
        (
            "{{ 'x' is string }}{{ {} is mapping }}{{ none is iterable }}{{ 'x' is iterable }}{{ 'x' is sequence }}{{ {} is sequence }}{{ 1 is sequence }}",
            "TrueTrueFalseTrueTrueTrueFalse",
        ),
        (
            "{{ missing is defined }}{{ none is none }}{{ messages[0].name is not defined }}{{ tools is none }}",
            "FalseTrueTrueTrue",
        ),
        (
            "{{ '' | default('x', boolean=true) }}{{ none | default('x') }}{{ missing | default('y') }}",
            "xNoney",
        ),
        (
            "{{ 'x' | int }}{{ '7' | int + 1 }}{{ 'x' | float }}",
            "080.0",
        ),
        (
            "{{ [{'a': 1}, {'b': 2}] | selectattr('a', 'defined') | map(attribute='a') | list }}",
            "[1]",
        ),
        (
            "{% macro m(a, b='x') %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) ~ m(1, b=2) }}",
            "[1x][12]",
        ),
        ("{{ 'a' 'b' ~ 1 }}{{ '{}-{x}'.format(1, x=2) }}", "ab11-2"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ enable_thinking }}{{ messages[1:] | length }}", "False3"),
    ] {
        let request = conversation()
            .with_variable("enable_thinking", json!(false))
            .at(DateTime::from_unix_seconds(1_721_991_909));
        assert_eq!(render(source, &request), expected, "{source}");
    }
}

#[test]
fn tools_and_their_results_reach_the_template() {
    let source = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}\
        {% if m.tool_calls %}{% for c in m.tool_calls %}<{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}\
        {% else %}{{ m.role }}={{ m.content }};{% endif %}{% endfor %}{{ documents[0].title }}";
    let mut call = ToolCall::new("add", json!({"b": 1, "a": "ü"}));
    call.id = Some("c1".into());
    let request = ChatRequest::new(vec![
        Message::user("1+ü?"),
        Message::assistant("").with_tool_calls(&[call]),
        Message::tool("2").with("name", json!("add")),
    ])
    .with_tools(vec![
        json!({"type": "function", "function": {"name": "add"}}),
    ])
    .with_documents(vec![json!({"title": "T"})]);
    let expected = "[{\"type\": \"function\", \"function\": {\"name\": \"add\"}}]user=1+ü?;\
        <c1 add {\"b\": 1, \"a\": \"ü\"}>tool=2;T";
    assert_eq!(render(source, &request), expected);
    // A template that joins the arguments as text gets text.
    let joins = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}";
    assert_eq!(render(joins, &request), "add{\"b\": 1, \"a\": \"ü\"}");
}

#[test]
fn messages_come_from_the_openai_form() {
    let message = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]});
    let message = Message::from_json(message).unwrap();
    assert_eq!((message.role(), message.content()), ("assistant", None));
    let request = ChatRequest::new(vec![message]);
    let source = "{{ messages[0].tool_calls[0].function.arguments.x }}";
    assert_eq!(render(source, &request), "1");
    assert_eq!(Message::from_json(json!({"content": "x"})), None);
    assert_eq!(Message::from_json(json!("x")), None);
}

#[test]
fn errors_are_one_sentence() {
    let broken = ChatTemplate::from_source("{% if %}", tokens()).unwrap_err();
    assert!(matches!(broken, TemplateError::Syntax { .. }));
    let refused = template("{{ raise_exception('no\n system') }}").render(&conversation());
    assert_eq!(
        refused.unwrap_err(),
        TemplateError::Refused {
            message: "no system".into()
        }
    );
    let failed = template("{{ x.y }}").render(&conversation()).unwrap_err();
    assert!(failed.to_string().contains("(line 1)"));
    for source in [
        "{{ [].append(1) }}",
        "{{ missing | tojson }}",
        "{{ 'a' + 1 }}",
        "{{ 1 | nofilter }}",
    ] {
        let error = match ChatTemplate::from_source(source, tokens()) {
            Ok(template) => template.render(&conversation()).unwrap_err(),
            Err(error) => error,
        };
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

/// Templates that do not end, or that make more than any machine holds.
#[test]
fn hostile_templates_end() {
    let deep = format!(
        "{{% set x = {}1{} %}}{{{{ x }}}}",
        "[".repeat(5000),
        "]".repeat(5000)
    );
    let nested = format!(
        "{}{}",
        "{% if true %}".repeat(5000),
        "{% endif %}".repeat(5000)
    );
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% set ns = namespace(x='0123456789') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | string }}",
        "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{{ 'x' * 1000000000000 }}",
        "{{ ([0] * 1000000000) | tojson }}",
        "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ 'x' | indent(1000000000, true) }}",
        "{{ 'x' | center(1000000000) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ 10 ** 1000000000 }}",
        "{{ [1] | tojson(indent=1000000000) }}{% for i in range(100000) %}{{ range(100000) | list | length }}{% endfor %}",
        "{{ range(100000) | map('string') | join('x' * 100000) | length }}",
        "{{ strftime_now('%c' * 100000000) | length }}",
        &deep,
        &nested,
    ] {
        let short: String = source.chars().take(60).collect();
        let result = ChatTemplate::from_source(source, tokens())
            .and_then(|template| template.render(&conversation()));
        let error = result.expect_err(&short).to_string();
        assert!(!error.contains('\n') && error.len() < 600, "{error}");
    }
}

#[test]
fn long_conversations_are_within_the_budget() {
    let turns = (0..1000).flat_map(|_| {
        [
            Message::user("x".repeat(2000)),
            Message::assistant("y".repeat(2000)),
        ]
    });
    let request = ChatRequest::new(turns.collect());
    let template = ChatTemplate::fallback(Family::Gemma, tokens()).unwrap();
    assert!(template.render(&request).unwrap().len() > 4_000_000);
}

#[test]
fn families_have_their_documented_form() {
    for (family, expected) in [
        (
            Family::ChatMl,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
             <|im_start|>assistant\nHo<|im_end|>\n<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            Family::Llama2,
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Ho </s><s>[INST] Go [/INST]",
        ),
        (
            Family::Llama3,
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\nHo<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nGo<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            Family::Gemma,
            "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHo<end_of_turn>\n\
             <start_of_turn>user\nGo<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            Family::Phi3,
            "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHo<|end|>\n\
             <|user|>\nGo<|end|>\n<|assistant|>\n",
        ),
        (
            Family::Zephyr,
            "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHo</s>\n<|user|>\nGo</s>\n<|assistant|>\n",
        ),
        (
            Family::Granite,
            "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n\
             <|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n\
             <|start_of_role|>assistant<|end_of_role|>Ho<|end_of_text|>\n\
             <|start_of_role|>user<|end_of_role|>Go<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
        (
            Family::Plain,
            "<s>Be brief.\n\nUser: Hi\n\nAssistant: Ho\n\nUser: Go\n\nAssistant:",
        ),
    ] {
        let request = ChatRequest::new(vec![
            Message::system("Be brief."),
            Message::user("Hi"),
            Message::assistant("Ho"),
            Message::user("Go"),
        ]);
        let template = ChatTemplate::fallback(family, tokens()).unwrap();
        assert_eq!(template.render(&request).unwrap(), expected, "{family}");
        assert!(template.is_fallback());
        assert!(template.origin().contains(&family.to_string()));
    }
    assert_eq!(template("x").origin(), "the model's own template");
}

#[test]
fn the_vocabulary_tells_the_family() {
    let family =
        |architecture, tokens: &[&str]| fallback_for(architecture, &|text| tokens.contains(&text));
    assert_eq!(
        family("llama", &["<|im_start|>", "<|user|>"]),
        Family::ChatMl
    );
    assert_eq!(family("llama", &["<|start_header_id|>"]), Family::Llama3);
    assert_eq!(family("gemma3", &["<start_of_turn>"]), Family::Gemma);
    assert_eq!(family("phi3", &["<|user|>", "<|end|>"]), Family::Phi3);
    assert_eq!(family("stablelm", &[]), Family::Zephyr);
    assert_eq!(family("llama", &[]), Family::Llama2);
    assert_eq!(family("gpt2", &[]), Family::Plain);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_source_is_a_template_or_an_error(
        parts in prop::collection::vec(prop_oneof![
            Just("{%"), Just("%}"), Just("{{"), Just("}}"), Just("{#"), Just("-"), Just(" for "), Just(" in "),
            Just(" if "), Just("else"), Just("endfor"), Just("endif"), Just("messages"), Just("generation"),
            Just("macro m("), Just(")"), Just("["), Just("]"), Just("|tojson"), Just("'é\\"), Just("1"), Just("."),
            Just("x"), Just("\n"), Just(" set "), Just("="), Just("**"), Just("~"),
        ], 0..40),
    ) {
        if let Ok(template) = ChatTemplate::from_source(&parts.concat(), tokens()) {
            let _ = template.render(&conversation());
        }
    }
}

//! What the endpoints answer, on a tiny random model.

mod support;

use ondine_server::ServerOptions;
use ondine_server::engine::EngineOptions;
use serde_json::{Value, json};
use support::{Answer, Running};

fn server() -> Running {
    Running::tiny(EngineOptions::default(), ServerOptions::default())
}

fn chat(fields: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0});
    body.as_object_mut()
        .expect("an object")
        .extend(fields.as_object().expect("an object").clone());
    body
}

#[test]
fn chat_answers_at_once_and_streamed_alike() {
    let server = server();
    let whole = server.post(
        "/v1/chat/completions",
        &chat(json!({"logprobs": true, "top_logprobs": 2})),
    );
    assert_eq!(whole.status, 200, "{whole:?}");
    let receipt: Value =
        serde_json::from_str(whole.header("x-ondine-receipt").expect("a receipt")).expect("JSON");
    assert_eq!(receipt["place"], "device");
    assert_eq!(receipt["timings"]["generated_tokens"], 8);
    let whole = whole.json();
    assert_eq!(whole["usage"]["completion_tokens"], 8);
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    let logprobs = choice["logprobs"]["content"].as_array().expect("a list");
    assert_eq!(logprobs.len(), 8);
    for token in logprobs {
        assert!(token["logprob"].as_f64().expect("a number") <= 0.0);
        assert_eq!(token["top_logprobs"].as_array().expect("a list").len(), 2);
        // Greedy: the chosen one is the likeliest.
        assert_eq!(token["top_logprobs"][0]["bytes"], token["bytes"]);
    }

    let body = chat(json!({"stream": true, "n": 2, "stream_options": {"include_usage": true}}));
    let streamed = server.post("/v1/chat/completions", &body);
    assert_eq!(streamed.header("content-type"), Some("text/event-stream"));
    assert!(
        streamed.body.ends_with("data: [DONE]\n\n"),
        "{}",
        streamed.body
    );
    let events = streamed.events();
    for index in 0..2 {
        let deltas = events
            .iter()
            .filter(|event| event["choices"][0]["index"] == index);
        let text: String = deltas
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(text, choice["message"]["content"].as_str().expect("text"));
    }
    let last = events.last().expect("events");
    assert_eq!(last["usage"]["completion_tokens"], 16);
    let receipts = events
        .iter()
        .filter(|event| event["ondine"]["timings"]["tokens_per_second"].is_number());
    assert_eq!(receipts.count(), 2);
}

#[test]
fn seeds_and_stops_are_kept() {
    let server = server();
    let ask = |seed: i64| {
        let body = chat(
            json!({"temperature": 1.5, "seed": seed, "max_tokens": 24, "top_k": 0, "top_p": 1, "min_p": 0}),
        );
        let answer = server.post("/v1/chat/completions", &body).json();
        answer["choices"][0]["message"]["content"]
            .as_str()
            .expect("text")
            .to_owned()
    };
    let first = ask(1);
    assert_eq!(ask(1), first);
    assert_ne!(ask(2), first);
    let stop: String = first.chars().skip(3).take(2).collect();
    let body = chat(
        json!({"temperature": 1.5, "seed": 1, "max_tokens": 24, "top_k": 0, "top_p": 1, "min_p": 0, "stop": [stop]}),
    );
    let cut = server.post("/v1/chat/completions", &body).json();
    let text = cut["choices"][0]["message"]["content"]
        .as_str()
        .expect("text")
        .to_owned();
    assert_eq!(
        text,
        first.split(stop.as_str()).next().expect("a beginning")
    );
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
}

#[test]
fn tools_are_called_when_they_must_be() {
    let server = server();
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object",
        "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"], "additionalProperties": false,
        "$defs": {"n": {"enum": [1, 2, 3]}}}}})
    };
    for choice in [
        json!("required"),
        json!({"type": "function", "function": {"name": "second"}}),
    ] {
        for stream in [false, true] {
            let body = chat(
                json!({"tools": [tool("first"), tool("second")], "tool_choice": choice, "max_tokens": 400, "stream": stream}),
            );
            let answer = server.post("/v1/chat/completions", &body);
            assert_eq!(answer.status, 200, "{answer:?}");
            let call = match stream {
                false => answer.json()["choices"][0]["message"]["tool_calls"][0].clone(),
                true => {
                    let events = answer.events();
                    let call = events.iter().find_map(|event| {
                        event["choices"][0]["delta"]["tool_calls"].get(0).cloned()
                    });
                    assert!(
                        events
                            .iter()
                            .any(|event| event["choices"][0]["finish_reason"] == "tool_calls"),
                        "{answer:?}"
                    );
                    call.expect("a call")
                }
            };
            let name = call["function"]["name"].as_str().expect("a name");
            assert!(name == "second" || name == "first" && choice == "required");
            let arguments: Value =
                serde_json::from_str(call["function"]["arguments"].as_str().expect("text"))
                    .expect("JSON");
            assert!((1..=3).contains(&arguments["n"].as_i64().expect("a number")));
        }
    }
    // A conversation that goes on after a call is rendered.
    let body = json!({"max_tokens": 4, "tools": [tool("first")], "messages": [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "first", "arguments": "{\"n\":1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "fine"}]});
    assert_eq!(server.post("/v1/chat/completions", &body).status, 200);
}

#[test]
fn the_other_interfaces_answer() {
    let server = server();
    let completion = server
        .post(
            "/v1/completions",
            &json!({"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "logprobs": 2}),
        )
        .json();
    assert_eq!(completion["choices"].as_array().expect("a list").len(), 4);
    assert_eq!(
        completion["choices"][3]["logprobs"]["tokens"]
            .as_array()
            .expect("a list")
            .len(),
        3
    );
    let tokens = server
        .post(
            "/v1/completions",
            &json!({"prompt": [5, 6, 7], "max_tokens": 2}),
        )
        .json();
    assert_eq!(tokens["usage"]["prompt_tokens"], 3);

    let response = server
        .post(
            "/v1/responses",
            &json!({"input": "hello", "instructions": "be brief", "max_output_tokens": 4}),
        )
        .json();
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["usage"]["output_tokens"], 4);
    let streamed = server.post("/v1/responses", &json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}], "max_output_tokens": 4, "stream": true}));
    let events = streamed.events();
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], index);
    }
    assert_eq!(events.first().expect("events")["type"], "response.created");
    assert_eq!(
        events.last().expect("events")["type"],
        "response.incomplete"
    );

    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(server.get("/v1/models/tiny").json()["id"], "tiny");
    assert_eq!(server.get("/health").json()["status"], "ok");

    let lines = |answer: Answer| -> Vec<Value> {
        answer
            .body
            .lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    };
    let chat = json!({"model": "tiny:latest", "messages": [{"role": "user", "content": "hello"}], "options": {"num_predict": 5, "temperature": 0}});
    let lines = lines(server.post("/api/chat", &chat));
    let last = lines.last().expect("lines");
    assert_eq!(
        (&last["done"], &last["done_reason"], &last["eval_count"]),
        (&json!(true), &json!("length"), &json!(5))
    );
    let generated = server.post("/api/generate", &json!({"prompt": "hello", "raw": true, "stream": false, "options": {"num_predict": 2}})).json();
    assert_eq!(generated["eval_count"], 2);
    assert_eq!(
        server
            .post("/api/generate", &json!({"model": "tiny"}))
            .json()["done_reason"],
        "load"
    );
    assert_eq!(server.get("/api/tags").json()["models"][0]["name"], "tiny");
    assert_eq!(
        server.post("/api/show", &json!({"model": "tiny"})).json()["model_info"]["general.architecture"],
        "llama"
    );
    assert!(server.get("/api/version").json()["version"].is_string());
    for page in ["/", "/page.css", "/page.js"] {
        let answer = server.get(page);
        assert!(
            answer.status == 200 && answer.header("content-security-policy").is_some(),
            "{page}"
        );
    }
    let redacted = server
        .post("/v1/redact", &json!({"text": "é bob@example.org"}))
        .json();
    assert_eq!(redacted["text"], "é <EMAIL_ADDRESS_1>");
    assert_eq!(
        redacted["placeholders"]["<EMAIL_ADDRESS_1>"],
        "bob@example.org"
    );
}

#[test]
fn embeddings_have_length_one_and_do_not_depend_on_company() {
    let server = server();
    let embed = |body: &Value| {
        let answer = server.post("/v1/embeddings", body).json();
        let data = answer["data"].as_array().expect("a list").clone();
        let vector = |item: Value| {
            item["embedding"].as_array().map(|list| {
                list.iter()
                    .map(|x| x.as_f64().expect("a number"))
                    .collect::<Vec<f64>>()
            })
        };
        data.into_iter().filter_map(vector).collect::<Vec<_>>()
    };
    let together = embed(&json!({"input": ["one text", "another text, a longer one"]}));
    let alone = embed(&json!({"input": "one text"}));
    assert_eq!(together.len(), 2);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert!((dot(&alone[0], &alone[0]) - 1.0).abs() < 1e-5);
    assert!(dot(&alone[0], &together[0]) > 0.9999);
    assert!(dot(&together[1], &together[0]) < 0.9999);
    let coded = server
        .post(
            "/v1/embeddings",
            &json!({"input": "one text", "encoding_format": "base64"}),
        )
        .json();
    assert_eq!(
        coded["data"][0]["embedding"].as_str().expect("text").len(),
        (64 * 4_usize).div_ceil(3) * 4
    );
}

#[test]
fn a_prompt_that_begins_alike_is_not_computed_again() {
    let server = server();
    let ask = |content: &str| {
        let body = json!({"messages": [{"role": "system", "content": "word ".repeat(30)}, {"role": "user", "content": content}], "max_tokens": 6, "temperature": 0});
        server.post("/v1/chat/completions", &body).json()
    };
    let cold = ask("hello");
    let warm = ask("hello");
    assert_eq!(cold["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let prompt = warm["usage"]["prompt_tokens"].as_u64().expect("a number");
    assert_eq!(
        warm["usage"]["prompt_tokens_details"]["cached_tokens"],
        prompt - 1
    );
    assert_eq!(cold["choices"], warm["choices"]);
    let other = ask("bye");
    assert!(
        other["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(30),
        "{other}"
    );
}

#[test]
fn wrong_requests_are_told_in_one_sentence() {
    let server = server();
    let message = json!([{"role": "user", "content": "hello"}]);
    let long = "word ".repeat(2000);
    for (path, body, status, part) in [
        ("/v1/chat/completions", json!({}), 400, "messages"),
        (
            "/v1/chat/completions",
            json!({"messages": []}),
            400,
            "no message",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "wizard", "content": "x"}]}),
            400,
            "role",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
            "image_url",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message, "model": "gpt-9"}),
            404,
            "gpt-9",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message, "temperature": -1}),
            400,
            "temperature",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message, "n": 0}),
            400,
            "n is 0",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message, "top_logprobs": 3}),
            400,
            "logprobs",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message, "logit_bias": {"x": 1}}),
            400,
            "token id",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message, "logit_bias": {"999999": 1}}),
            400,
            "999999",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message, "tool_choice": "required"}),
            400,
            "tool",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message, "response_format": {"type": "xml"}}),
            400,
            "type",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wizard"}}}}),
            400,
            "wizard",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": long}]}),
            400,
            "context",
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "echo": true}),
            400,
            "echo",
        ),
        (
            "/v1/completions",
            json!({"prompt": [999_999]}),
            400,
            "999999",
        ),
        ("/v1/completions", json!({"prompt": []}), 400, "prompt"),
        (
            "/v1/responses",
            json!({"input": "x", "previous_response_id": "y"}),
            400,
            "previous_response_id",
        ),
        (
            "/v1/embeddings",
            json!({"input": "x", "dimensions": 3}),
            400,
            "dimensions",
        ),
        (
            "/api/chat",
            json!({"messages": message, "format": 7}),
            400,
            "format",
        ),
        ("/nowhere", json!({}), 404, "nowhere"),
        ("/v1/models", json!({}), 405, "POST"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, status, "{path} {body}: {answer:?}");
        let error = answer.json();
        let told = match path.starts_with("/api/") {
            true => error["error"].as_str().expect("a message"),
            false => error["error"]["message"].as_str().expect("a message"),
        };
        assert!(
            told.contains(part) && !told.contains('\n') && told.len() < 500,
            "{told}"
        );
    }
}

use proptest::prelude::*;

use super::*;
use crate::Limits;
use crate::gguf::{HeaderWriter, ModelFile};
use crate::sample::{Sampler, SamplingOptions};
use crate::source::Memory;

/// A SentencePiece vocabulary of all bytes and some words.
fn tokenizer() -> Arc<Tokenizer> {
    let mut texts: Vec<String> = ["<unk>", "<s>", "</s>", "<|tool|>"]
        .map(String::from)
        .to_vec();
    let mut kinds = vec![2, 3, 3, 3];
    for byte in 0..=255_u8 {
        texts.push(format!("<0x{byte:02X}>"));
        kinds.push(6);
    }
    for text in [
        "\"name\"", "{\"", "\":", "▁", "▁▁", "name", "age", "true", "false", "null", "12", "1",
        "e", "a", "▁a", "\",\"", "\"}", "],", "[[", "né", "ab", "abc", "\n", "Ada", "{}", "5",
    ] {
        texts.push(text.to_owned());
        kinds.push(1);
    }
    let mut header = HeaderWriter::new();
    header.string("general.architecture", "llama");
    header.string("tokenizer.ggml.model", "llama");
    header.string_array("tokenizer.ggml.tokens", &texts);
    header.i32_array("tokenizer.ggml.token_type", &kinds);
    header.f32_array("tokenizer.ggml.scores", &vec![0.0; texts.len()]);
    let source = Memory::new("test", header.finish());
    let file = ModelFile::from_source(Arc::new(source), &Limits::default()).unwrap();
    Arc::new(Tokenizer::from_gguf(&file.metadata, &Limits::default()).unwrap())
}

pub(super) struct Fixture {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) factory: ConstraintFactory,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let tokenizer = tokenizer();
        let factory = ConstraintFactory::new(&tokenizer).unwrap();
        Fixture { tokenizer, factory }
    }

    /// What a model of random opinions writes, and whether it ended by itself.
    fn write(&self, spec: &ConstraintSpec, seed: u64, most: usize) -> (String, bool) {
        let mut constraint = self.factory.build(spec).unwrap();
        let mut sampler = Sampler::new(SamplingOptions {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed,
            // Ends are likely where they are allowed, bytes are not.
            logit_bias: vec![(2, 5.0)],
            ..SamplingOptions::default()
        })
        .unwrap();
        let mut text = Vec::new();
        for _ in 0..most {
            if constraint.must_stop() {
                return (String::from_utf8(text).unwrap(), true);
            }
            let mask = constraint.mask().unwrap();
            let mut logits: Vec<f32> = (0..self.tokenizer.vocab_len())
                .map(|token| if token < 260 { 0.0 } else { 2.0 })
                .collect();
            let token = sampler.sample(&mut logits, Some(mask)).unwrap().token;
            if self.tokenizer.is_end_of_generation(token) {
                assert!(constraint.is_complete());
                return (String::from_utf8(text).unwrap(), true);
            }
            constraint.commit(token).unwrap();
            text.extend_from_slice(self.tokenizer.token_bytes(token));
        }
        (String::from_utf8_lossy(&text).into_owned(), false)
    }

    /// Whether the bytes of `text`, token by token, are allowed, and whether it may end there.
    fn accepts(&self, spec: &ConstraintSpec, text: &str) -> bool {
        let mut constraint = self.factory.build(spec).unwrap();
        for byte in text.bytes() {
            let token = u32::from(byte) + 4;
            if constraint.must_stop() || !constraint.mask().unwrap().allows(token) {
                return false;
            }
            constraint.commit(token).unwrap();
        }
        constraint.is_complete()
    }
}

const PERSON: &str = r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 8},
    "age": {"type": "integer", "minimum": 0, "maximum": 150}, "tags": {"type": "array", "items": {"enum": ["a", "b"]},
    "maxItems": 3}}, "required": ["name", "age"], "additionalProperties": false}"#;

#[test]
fn closing_brings_json_to_its_end() {
    let fixture = Fixture::new();
    let deep = r#"{"type": "object", "properties": {"a": {"type": "array", "minItems": 2, "items": {"type": "object",
        "properties": {"n": {"type": "number"}, "s": {"type": "string", "minLength": 3}}, "required": ["n", "s"]}}},
        "required": ["a"]}"#;
    let tree = r##"{"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer"},
        "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}, "right": {"$ref": "#/$defs/either"}},
        "required": ["v", "left", "right"], "additionalProperties": false},
        "either": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}"##;
    let pattern = r#"{"type": "string", "pattern": "^[\\]}a]{20,40}(b|c]})$"}"#;
    for spec in [PERSON, deep, tree, pattern, "{}", r#"{"type": "string"}"#] {
        let spec = ConstraintSpec::JsonSchema(spec.into());
        for seed in 0..20 {
            for free in [0, 3, 10, 30] {
                let mut constraint = fixture.factory.build(&spec).unwrap();
                let mut random: u64 = seed * 7919 + 1;
                let mut text = Vec::new();
                let most = free + 120;
                for step in 0..most {
                    if constraint.must_stop() {
                        break;
                    }
                    let mask = constraint.mask_within(most - step, 60).unwrap();
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let allowed: Vec<u32> = (0..fixture.tokenizer.vocab_len() as u32)
                        .filter(|&token| mask.allows(token))
                        .collect();
                    let token = allowed[(random >> 33) as usize % allowed.len()];
                    constraint.commit(token).unwrap();
                    if fixture.tokenizer.is_end_of_generation(token) {
                        break;
                    }
                    text.extend_from_slice(fixture.tokenizer.token_bytes(token));
                }
                let text = String::from_utf8_lossy(&text).into_owned();
                assert!(constraint.is_complete(), "{text}");
            }
        }
    }
}

#[test]
fn what_ends_by_itself_is_valid() {
    let fixture = Fixture::new();
    let person = ConstraintSpec::JsonSchema(PERSON.into());
    let regex = ConstraintSpec::Regex(r"(ab|né)+[0-9]{2,4}".into());
    let lark = ConstraintSpec::Lark("start: \"1\" (\"+\" start)? | \"(\" start \")\"".into());
    let mut ended = 0;
    for seed in 0..60 {
        let (text, end) = fixture.write(&person, seed, 200);
        if end {
            ended += 1;
            let value: Json = serde_json::from_str(&text).expect(&text);
            assert!(
                value["name"].as_str().unwrap().chars().count() <= 8,
                "{text}"
            );
            assert!(
                (0..=150).contains(&value["age"].as_i64().unwrap()),
                "{text}"
            );
        }
        let (text, end) = fixture.write(&ConstraintSpec::AnyJson, seed, 200);
        if end {
            ended += 1;
            if let Err(error) = serde_json::from_str::<Json>(&text) {
                // 1e999 is JSON, if no number.
                assert!(
                    error.to_string().contains("out of range"),
                    "{text}: {error}"
                );
            }
        }
        let (text, end) = fixture.write(&regex, seed, 60);
        if end {
            ended += 1;
            let digits = text.trim_start_matches("ab").trim_start_matches("né");
            let digits = digits.trim_start_matches(|c: char| !c.is_ascii_digit());
            assert!((2..=4).contains(&digits.len()), "{text}");
        }
        let (text, end) = fixture.write(&lark, seed, 60);
        if end {
            ended += 1;
            assert_eq!(
                text.matches('(').count(),
                text.matches(')').count(),
                "{text}"
            );
            assert!(text.contains('1'));
        }
    }
    assert!(ended > 120, "only {ended} of 240 texts ended");
}

#[test]
fn the_end_is_allowed_only_where_the_text_is_complete() {
    let fixture = Fixture::new();
    let person = ConstraintSpec::JsonSchema(PERSON.into());
    for (text, expected) in [
        (r#"{"name":"Ada","age":36}"#, true),
        (
            "{ \"name\": \"Ada\", \"age\": 36, \"tags\": [\"a\", \"b\"] }",
            true,
        ),
        (r#"{"name":"Ada","age":36"#, false),
        (r#"{"name":"Ada"}"#, false),
        (r#"{"name":"Ada","age":151}"#, false),
        (r#"{"name":"Ada","age":"x"}"#, false),
        (r#"{"name":"Ada","age":1,"more":1}"#, false),
        (r#"{"name":"Ada","age":36}x"#, false),
        ("", false),
    ] {
        assert_eq!(fixture.accepts(&person, text), expected, "{text}");
    }
    for (text, expected) in [
        ("ab", true),
        ("abab", true),
        ("aba", false),
        ("", false),
        ("ba", false),
    ] {
        let regex = ConstraintSpec::Regex("(ab)+".into());
        assert_eq!(fixture.accepts(&regex, text), expected, "{text}");
    }
    for (text, expected) in [
        ("null", true),
        ("[1, {\"é\": []}]", true),
        ("[1", false),
        ("nul", false),
    ] {
        assert_eq!(
            fixture.accepts(&ConstraintSpec::AnyJson, text),
            expected,
            "{text}"
        );
    }
}

#[test]
fn control_tokens_are_no_text() {
    let fixture = Fixture::new();
    let spec = ConstraintSpec::Regex("(.|\n)*".into());
    let mut constraint = fixture.factory.build(&spec).unwrap();
    let mask = constraint.mask().unwrap();
    assert!(!mask.allows(0) && !mask.allows(1) && !mask.allows(3));
    assert!(mask.allows(2) && mask.allows(4 + u32::from(b'<')));
    assert!(constraint.commit(3).is_err());
}

#[test]
fn a_token_that_does_not_fit_is_an_error() {
    let fixture = Fixture::new();
    let spec = ConstraintSpec::Regex("ab".into());
    let mut constraint = fixture.factory.build(&spec).unwrap();
    assert!(constraint.commit(2).is_err());
    let error = constraint.commit(4 + u32::from(b'x')).unwrap_err();
    assert!(!error.to_string().contains('\n'));
    assert!(!constraint.must_stop() && !constraint.is_complete());
    assert!(constraint.mask().is_err());
}

/// Each is refused, or can be followed without much work or memory.
#[test]
fn hostile_sources_are_bounded() {
    let fixture = Fixture::new();
    let json = |text: &str| ConstraintSpec::JsonSchema(text.to_owned());
    let regex = |text: &str| ConstraintSpec::Regex(text.to_owned());
    let lark = |text: &str| ConstraintSpec::Lark(text.to_owned());
    let deep_lark = format!("start: {}\"a\"{}", "(".repeat(4000), ")".repeat(4000));
    let many_lark = format!("start: {}\"a\"{}", "(".repeat(100_000), ")".repeat(100_000));
    let hidden = format!("start: {}", "(\")\" ".repeat(20_000));
    let deep_regex = format!("{}a{}", "(".repeat(5000), ")".repeat(5000));
    let deep_json = format!("{}{{}}{}", "{\"items\":".repeat(5000), "}".repeat(5000));
    for spec in [
        json("{"),
        json("[1]"),
        json(r#"{"type": "nonsense"}"#),
        json(r##"{"$ref": "#"}"##),
        json(r##"{"$ref": "#/nowhere"}"##),
        json(r##"{"allOf": [{"$ref": "#"}, {"$ref": "#"}]}"##),
        json(r#"{"type": "string", "pattern": "(a*)*b{1,1000}{1,1000}{1,1000}"}"#),
        json(r#"{"type": "string", "minLength": 1000000000}"#),
        json(
            r#"{"type": "array", "minItems": 1000000000, "items": {"type": "array", "minItems": 1000000000}}"#,
        ),
        json(&deep_json),
        json(&" ".repeat(MAX_SOURCE + 1)),
        regex("("),
        regex("(?=a)b"),
        regex("((a{1,1000}){1,1000}){1,1000}"),
        regex("(x+x+)+y"),
        regex(".*a.{200}"),
        regex(&deep_regex),
        lark("start:"),
        lark("start: start start"),
        lark("start: other"),
        lark("other: \"a\""),
        lark("start: a a\na: b b\nb: c c\nc: start | \"\""),
        lark("start: \"a\"{1000000000}"),
        lark(&deep_lark),
        lark(&many_lark),
        lark(&hidden),
        lark("start: /(/"),
        lark("start: @other"),
        lark("start: %json {\"type\": 5}"),
    ] {
        let check = |error: ConstraintError| {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.len() < 1000, "{text}");
        };
        match fixture.factory.build(&spec) {
            Err(error) => check(error),
            Ok(mut constraint) => {
                for _ in 0..3 {
                    if constraint.must_stop() {
                        break;
                    }
                    match constraint.mask() {
                        Err(error) => check(error),
                        Ok(mask) => {
                            let token = (0..mask.vocabulary() as u32)
                                .find(|&token| mask.allows(token) && token != 2);
                            if let Some(Err(error)) = token.map(|token| constraint.commit(token)) {
                                check(error);
                            }
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_source_is_a_constraint_or_an_error(
        parts in prop::collection::vec(prop_oneof![
            Just("start"), Just(":"), Just("\n"), Just("\"a\""), Just("/b+/"), Just("("), Just(")"), Just("|"),
            Just("*"), Just("{2,3}"), Just("%json"), Just("{}"), Just("[a-z]"), Just("\\"), Just("é"), Just("x"),
            Just(" "), Just("other"), Just("%ignore"), Just("~"), Just("&"), Just("<s>"), Just("@"),
        ], 0..16),
    ) {
        let fixture = Fixture::new();
        let text = parts.concat();
        for spec in [
            ConstraintSpec::Lark(format!("start: {text}")),
            ConstraintSpec::Regex(text.clone()),
            ConstraintSpec::JsonSchema(text.clone()),
        ] {
            if let Ok(mut constraint) = fixture.factory.build(&spec) {
                let _ = constraint.mask();
            }
        }
    }
}
